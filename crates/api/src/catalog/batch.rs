//! Rows of batch.

use super::{Generation, RW, Row};
use crate::columns;
use crate::defaults::kinds;
use crate::rules;
use crate::strategy::kinds as strategy;

pub(super) const ROWS: &[Row] = &[
    Row::namespaced("io.k8s.api.batch.v1", ("batch", "v1"), "CronJob", "cronjobs", "cronjob")
        .short(&["cj"])
        .categories(&["all"])
        .sub(&[("status", "CronJob", RW)])
        .status()
        .generation(Generation::Spec)
        .columns("Name, Schedule, Timezone, Suspend:boolean, Active:integer, Last Schedule, Age, Containers*, Images*, Selector*", columns::workloads::cron_job)
        .rules(rules::jobs::cron_job)
        .warnings(rules::warnings::cron_job)
        .defaults(kinds::cron_job),
    Row::namespaced("io.k8s.api.batch.v1", ("batch", "v1"), "Job", "jobs", "job")
        .categories(&["all"])
        .sub(&[("status", "Job", RW)])
        .status()
        .selectable(&[("status.successful", "status.succeeded")])
        .generation(Generation::Spec)
        .columns("Name, Status, Completions, Duration, Age, Containers*, Images*, Selector*", columns::workloads::job)
        .rules(rules::jobs::job)
        .status_rules(rules::jobs::job_status)
        .warnings(rules::warnings::template)
        .on_create(strategy::job_create)
        .defaults(kinds::job),
];
