//! The two forms that Prometheus reads. They differ in what a counter is called where it is described.

use std::collections::BTreeSet;

/// As whoever asks wants it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Form {
    OpenMetrics,
    /// Prometheus' own, version 0.0.4.
    Plain,
}

impl Form {
    /// By the header `Accept`.
    #[must_use]
    pub fn wanted(accept: Option<&str>) -> Self {
        if accept.is_some_and(|accept| accept.contains("application/openmetrics-text")) {
            Self::OpenMetrics
        } else {
            Self::Plain
        }
    }

    #[must_use]
    pub fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Plain => "text/plain; version=0.0.4; charset=utf-8",
        }
    }

    /// From OpenMetrics.
    pub(super) fn of(self, text: String) -> String {
        match self {
            Self::OpenMetrics => text,
            Self::Plain => plain(&text),
        }
    }
}

fn plain(text: &str) -> String {
    let described = |line: &str| Some(line.strip_prefix("# TYPE ")?.strip_suffix(" counter")?.to_owned());
    let counters: BTreeSet<String> = text.lines().filter_map(described).collect();
    let mut plain = String::with_capacity(text.len() + 1024);
    for line in text.lines().filter(|line| *line != "# EOF") {
        let mut words = line.splitn(4, ' ');
        match (words.next(), words.next(), words.next(), words.next()) {
            (Some("#"), Some(what), Some(name), Some(rest)) if counters.contains(name) => {
                plain.push_str(&format!("# {what} {name}_total {rest}"));
            }
            (_, _, _, _) => plain.push_str(line),
        }
        plain.push('\n');
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_is_described_by_its_whole_name_in_the_plain_form() {
        let text = "# HELP vp_a Some a.\n# TYPE vp_a counter\nvp_a_total{b=\"c d\"} 1\n# HELP vp_g G.\n# TYPE vp_g gauge\nvp_g 2\n# EOF\n";
        let expected = "# HELP vp_a_total Some a.\n# TYPE vp_a_total counter\nvp_a_total{b=\"c d\"} 1\n# HELP vp_g G.\n# TYPE vp_g gauge\nvp_g 2\n";
        assert_eq!(Form::Plain.of(text.to_owned()), expected);
        assert_eq!(Form::OpenMetrics.of(text.to_owned()), text);
        assert_eq!(
            Form::wanted(Some("application/openmetrics-text;version=1.0.0,text/plain;q=0.5")),
            Form::OpenMetrics
        );
        assert_eq!((Form::wanted(Some("*/*")), Form::wanted(None)), (Form::Plain, Form::Plain));
    }
}
