//! Quantities as operators write them.

use std::time::Duration;

/// `25s`, `5m`, `2h`, `500ms`.
pub fn duration(text: &str) -> Option<Duration> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_lowercase());
    let number: u64 = digits.parse().ok()?;
    let millis = match &text[digits.len()..] {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return None,
    };
    number.checked_mul(millis).map(Duration::from_millis)
}

/// `800kbit`, `10Mbit`, `1Gbit`: bits a second, in powers of ten.
pub fn bits_per_second(text: &str) -> Option<u64> {
    let text = text.strip_suffix("/s").unwrap_or(text);
    let number = text.strip_suffix("bit")?;
    let (number, factor) = match number.chars().last()? {
        'k' => (&number[..number.len() - 1], 1_000),
        'M' => (&number[..number.len() - 1], 1_000_000),
        'G' => (&number[..number.len() - 1], 1_000_000_000),
        _ => (number, 1),
    };
    number.parse::<u64>().ok()?.checked_mul(factor).filter(|rate| *rate > 0)
}

/// `50/s`.
pub fn per_second(text: &str) -> Option<u32> {
    text.strip_suffix("/s")?.parse().ok().filter(|rate| *rate > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_read_as_they_are_written() {
        assert_eq!(duration("25s"), Some(Duration::from_secs(25)));
        assert_eq!(duration("2h"), Some(Duration::from_secs(7200)));
        assert_eq!((duration("25"), duration("s"), duration("1d")), (None, None, None));
        assert_eq!(bits_per_second("10Mbit"), Some(10_000_000));
        assert_eq!(bits_per_second("800kbit/s"), Some(800_000));
        assert_eq!((bits_per_second("10"), bits_per_second("0bit"), bits_per_second("Mbit")), (None, None, None));
        assert_eq!((per_second("50/s"), per_second("50"), per_second("0/s")), (Some(50), None, None));
    }
}
