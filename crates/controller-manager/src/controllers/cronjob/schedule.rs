//! When a CronJob is due: its schedule in its time zone. Pure.

use croner::Cron;
use croner::parser::{CronParser, Seconds, Year};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp, Zoned};
use k8s_openapi::api::batch::v1::CronJobSpec;

/// More missed starts than this are not looked through one by one.
pub(super) const MISSED_MAX: usize = 100;

/// A schedule that can be asked.
#[derive(Debug)]
pub(super) struct Schedule {
    when: When,
    pub(super) zone: TimeZone,
}

#[derive(Debug)]
enum When {
    Cron(Box<Cron>),
    /// `@every 5m`: so long after the last time.
    Every(SignedDuration),
}

/// The starts between two times.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Due {
    /// The last of them.
    pub(super) last: Option<Timestamp>,
    /// How many there were, counted to one more than [`MISSED_MAX`].
    pub(super) count: usize,
}

impl Schedule {
    /// Reads the schedule; the error is for people.
    pub(super) fn read(spec: &CronJobSpec) -> Result<Self, (&'static str, String)> {
        let zone = match spec.time_zone.as_deref() {
            None => TimeZone::UTC,
            Some(name) => TimeZone::get(name)
                .map_err(|e| ("UnknownTimeZone", format!("invalid timeZone: {name:?}: {e}")))?,
        };
        let text = spec.schedule.trim();
        let bad =
            |e: String| ("UnparseableSchedule", format!("unparseable schedule: {text:?} : {e}"));
        if let Some(every) = text.strip_prefix("@every ") {
            let every: SignedDuration =
                every.trim().parse().map_err(|e: jiff::Error| bad(e.to_string()))?;
            let every = every.max(SignedDuration::from_secs(1));
            return Ok(Self { when: When::Every(every), zone });
        }
        let parser = CronParser::builder().seconds(Seconds::Disallowed).year(Year::Disallowed);
        let cron = parser.sloppy_ranges(true).build().parse(text);
        let cron = cron.map_err(|e| bad(e.to_string()))?;
        Ok(Self { when: When::Cron(Box::new(cron)), zone })
    }

    /// The first start after `time`.
    pub(super) fn next(&self, time: Timestamp) -> Option<Timestamp> {
        match &self.when {
            When::Every(every) => time.checked_add(*every).ok(),
            When::Cron(cron) => {
                let zoned: Zoned = time.to_zoned(self.zone.clone());
                cron.find_next_occurrence(&zoned, false).ok().map(|next| next.timestamp())
            }
        }
    }

    /// The starts after `from`, up to `to`.
    pub(super) fn due(&self, from: Timestamp, to: Timestamp) -> Due {
        let mut due = Due::default();
        let mut at = from;
        while let Some(next) = self.next(at)
            && next <= to
        {
            due = Due { last: Some(next), count: due.count + 1 };
            at = next;
            if due.count > MISSED_MAX {
                // The last one is all that matters of so many: begin again near the end.
                let step =
                    (next.duration_since(from)).as_secs() / i64::try_from(due.count).unwrap_or(1);
                let near = to.as_second() - 2 * step.max(60);
                match Timestamp::from_second(near) {
                    Ok(near) if near > at => at = near,
                    _ => {}
                }
                due.count = MISSED_MAX + 1;
            }
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(text: &str, zone: Option<&str>) -> Schedule {
        let (schedule, time_zone) = (text.to_owned(), zone.map(str::to_owned));
        Schedule::read(&CronJobSpec { schedule, time_zone, ..CronJobSpec::default() }).unwrap()
    }

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn the_next_start_is_of_the_zone() {
        let now = at("2026-03-28T12:00:00Z");
        for (text, zone, next) in [
            ("*/15 * * * *", None, "2026-03-28T12:15:00Z"),
            ("5/20 * * * *", None, "2026-03-28T12:05:00Z"),
            ("0 0 ? * *", None, "2026-03-29T00:00:00Z"),
            ("@hourly", None, "2026-03-28T13:00:00Z"),
            ("@every 90s", None, "2026-03-28T12:01:30Z"),
            ("30 8 * * MON-FRI", None, "2026-03-30T08:30:00Z"),
            ("0 9 * * *", Some("America/New_York"), "2026-03-28T13:00:00Z"),
            // Either day is enough when both are given.
            ("0 0 1 * 0", None, "2026-03-29T00:00:00Z"),
        ] {
            assert_eq!(schedule(text, zone).next(now), Some(at(next)), "{text}");
        }
    }

    #[test]
    fn what_was_missed_is_counted_and_the_last_of_it_found() {
        let hourly = schedule("0 * * * *", None);
        let due = hourly.due(at("2026-01-01T00:00:00Z"), at("2026-01-01T03:30:00Z"));
        assert_eq!(due, Due { last: Some(at("2026-01-01T03:00:00Z")), count: 3 });
        let minutely = schedule("* * * * *", None);
        let due = minutely.due(at("2020-01-01T00:00:00Z"), at("2026-01-01T03:30:30Z"));
        assert_eq!(due, Due { last: Some(at("2026-01-01T03:30:00Z")), count: MISSED_MAX + 1 });
    }

    #[test]
    fn what_cannot_be_read_says_why() {
        let spec = |schedule: &str, zone: &str| CronJobSpec {
            schedule: schedule.into(),
            time_zone: Some(zone.into()),
            ..CronJobSpec::default()
        };
        assert_eq!(
            Schedule::read(&spec("* * * * *", "Mars/Base")).unwrap_err().0,
            "UnknownTimeZone"
        );
        assert_eq!(
            Schedule::read(&spec("61 * * * *", "UTC")).unwrap_err().0,
            "UnparseableSchedule"
        );
    }
}
