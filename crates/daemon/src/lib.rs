//! What every process needs: config, telemetry, metrics, health, tasks, TLS, clock.
