//! Which records somebody wants to see.

use crate::clock::rfc3339;
use std::time::{Duration, SystemTime};
use vp_proto::api::AuditRecord;

/// All of it must hold.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Filter {
    pub service: Option<String>,
    pub peer: Option<String>,
    pub client: Option<String>,
    pub event: Option<String>,
    pub reason: Option<String>,
    /// A whole id, or the first half of it for all connections between the same ends.
    pub flow: Option<String>,
    /// The beginning of a time as records have it.
    pub since: Option<String>,
}

impl Filter {
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    #[must_use]
    pub fn matches(&self, record: &AuditRecord) -> bool {
        let is = |wanted: &Option<String>, value: Option<&String>| wanted.is_none() || wanted.as_ref() == value;
        let flow = record.flow.as_deref().unwrap_or_default();
        is(&self.service, record.service.as_ref())
            && is(&self.peer, record.peer.as_ref())
            && is(&self.client, record.client.as_ref())
            && is(&self.event, Some(&record.event))
            && is(&self.reason, record.reason.as_ref())
            && self.flow.as_deref().is_none_or(|id| flow == id || flow.split('-').next() == Some(id))
            && !self.is_before(record)
    }

    /// Nothing older than this record matches either: the log is in the order of time.
    #[must_use]
    pub fn is_before(&self, record: &AuditRecord) -> bool {
        self.since.as_ref().is_some_and(|since| record.time < *since)
    }
}

/// `90s`, `10m`, `2h` or `7d` before now, or a date or time as records have it.
pub fn since(text: &str, now: SystemTime) -> Result<String, String> {
    let wrong = || format!("since {text:?}: expected 10m, 2h, 7d or a time such as 2026-11-21T08:00:00Z");
    if text.len() >= "2026-11-21".len() {
        let in_place = |(at, byte): (usize, u8)| match at {
            4 | 7 => byte == b'-',
            10 => byte == b'T',
            13 | 16 => byte == b':',
            19 => byte == b'.' || byte == b'Z',
            23 => byte == b'Z',
            _ => byte.is_ascii_digit(),
        };
        let is_time = text.len() <= 24 && text.bytes().enumerate().all(in_place);
        return if is_time { Ok(text.trim_end_matches('Z').to_owned()) } else { Err(wrong()) };
    }
    let (number, unit) = text.split_at_checked(text.len().saturating_sub(1)).ok_or_else(wrong)?;
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return Err(wrong()),
    };
    let number: u32 = number.parse().map_err(|_| wrong())?;
    let before = now.checked_sub(Duration::from_secs(u64::from(number) * seconds));
    Ok(rfc3339(before.unwrap_or(SystemTime::UNIX_EPOCH)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_that_is_asked_for_must_hold() {
        let text = |text: &str| Some(text.to_owned());
        let record = AuditRecord {
            time: "2026-11-21T08:00:00.500Z".to_owned(),
            event: "denied".to_owned(),
            service: text("web.cloud"),
            flow: text("0123456789abcdef-01234567"),
            ..AuditRecord::default()
        };
        let of = |change: fn(&mut Filter)| {
            let mut filter = Filter::default();
            change(&mut filter);
            filter.matches(&record)
        };
        assert!(of(|_| {}) && of(|f| f.event = Some("denied".to_owned())));
        assert!(of(|f| f.flow = Some("0123456789abcdef".to_owned())));
        assert!(of(|f| f.flow = Some("0123456789abcdef-01234567".to_owned())));
        assert!(!of(|f| f.flow = Some("0123456789abcde".to_owned())) && !of(|f| f.peer = Some("cloud".to_owned())));
        for (time, holds) in [("2026-11-21T08:00:00Z", true), ("2026-11-21", true), ("2026-11-21T08:00:01Z", false)] {
            let since = since(time, SystemTime::UNIX_EPOCH).ok();
            assert_eq!(Filter { since, ..Filter::default() }.matches(&record), holds, "{time}");
        }
    }

    #[test]
    fn since_is_a_while_ago_or_a_time() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(86_400);
        assert_eq!(since("2h", now).as_deref(), Ok("1970-01-01T22:00:00.000Z"));
        assert_eq!(since("9999d", now).as_deref(), Ok("1970-01-01T00:00:00.000Z"));
        for bad in ["", "m", "-1h", "10", "yesterday", "tomorrow at noon", "2026-11-21T08:00:00+01", "5ü"] {
            assert!(since(bad, now).is_err(), "{bad}");
        }
    }
}
