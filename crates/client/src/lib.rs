//! Talking to the API server: transport, cache, controllers, plans.
