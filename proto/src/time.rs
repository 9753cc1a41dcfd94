//! Dates as RFC 3339 writes them, in UTC.

use std::time::Duration;

/// To the second, as certificates have them.
#[must_use]
pub fn rfc3339(seconds: u64) -> String {
    format!("{}Z", date(seconds))
}

/// To the millisecond, as records have them.
#[must_use]
pub fn rfc3339_millis(since_1970: Duration) -> String {
    format!("{}.{:03}Z", date(since_1970.as_secs()), since_1970.subsec_millis())
}

/// Days to dates by the Gregorian calendar's cycle of 400 years.
fn date(seconds: u64) -> String {
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // Counted from 1 March of year 0, so that the leap day is a year's last.
    let days = days + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let shifted = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_those_of_the_calendar() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00Z");
        assert_eq!(rfc3339_millis(Duration::from_millis(951_826_154_007)), "2000-02-29T12:09:14.007Z");
        assert_eq!(rfc3339(4_107_542_399), "2100-02-28T23:59:59Z");
        assert_eq!(rfc3339(4_107_542_400), "2100-03-01T00:00:00Z");
        assert!(rfc3339(u64::MAX).ends_with('Z'));
    }
}
