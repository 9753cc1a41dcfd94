//! Limits, one shape wherever they stand: in the file as keys, on the command line as `key=value`, where those of each caller
//! are `per_caller.key=value`.

use super::convert::{Places, Reader, Result};
use super::error::FieldError;
use super::file::{self, Text};
use super::values::{self, Parsed};
use serde_saphyr::{Location, Spanned};
use std::collections::BTreeMap;
use vp::addr::{Bounds, Limits, Mode, Name};
use vp::identity::Trust;

/// So many tenants may have limits; as many as authorities may be trusted.
const TENANTS_MAX: usize = 64;
const PER_CALLER: &str = "per_caller.";
const KEYS: &str = "rate, rate_inbound, rate_outbound, packets, packets_inbound, packets_outbound, flows, new_flows or \
                    mode, or per_caller. and one of them but mode";

/// Of a request: `rate=10Mbit`.
pub fn of_request(texts: &[String]) -> std::result::Result<Limits, FieldError> {
    let mut limits = Limits::default();
    for of_one_direction in [false, true] {
        for (index, text) in texts.iter().enumerate() {
            let (key, value) = text.split_once('=').unwrap_or((text, ""));
            if is_of_one_direction(key) == of_one_direction {
                set(&mut limits, key, value).map_err(|error| FieldError::at("limits", index, error))?;
            }
        }
    }
    Ok(limits)
}

/// What is said of a direction counts there, whatever is said of both.
fn is_of_one_direction(key: &str) -> bool {
    key.ends_with("_inbound") || key.ends_with("_outbound")
}

fn set(limits: &mut Limits, key: &str, text: &str) -> Parsed<()> {
    if key == "mode" {
        limits.mode = match text {
            "enforce" => Mode::Enforce,
            "observe" => Mode::Observe,
            _ => return Err(format!("mode: {text:?} is no mode, expected enforce or observe")),
        };
        return Ok(());
    }
    let (bounds, name) = match key.strip_prefix(PER_CALLER) {
        Some(name) => (&mut limits.per_caller, name),
        None => (&mut limits.all, key),
    };
    set_bound(bounds, name, text)
        .map_err(|error| if error.is_empty() { unknown(key) } else { format!("{key}: {error}") })
}

fn unknown(key: &str) -> String {
    format!("{key:?} is no limit, expected {KEYS}")
}

/// An error without text: there is no such key.
fn set_bound(bounds: &mut Bounds, key: &str, text: &str) -> Parsed<()> {
    let rate = || values::rate(text).map(Some);
    let packets = || values::per_second(text).map(Some);
    match key {
        "rate" => {
            bounds.inbound.bits_per_second = rate()?;
            bounds.outbound.bits_per_second = rate()?;
        }
        "rate_inbound" => bounds.inbound.bits_per_second = rate()?,
        "rate_outbound" => bounds.outbound.bits_per_second = rate()?,
        "packets" => {
            bounds.inbound.packets_per_second = packets()?;
            bounds.outbound.packets_per_second = packets()?;
        }
        "packets_inbound" => bounds.inbound.packets_per_second = packets()?,
        "packets_outbound" => bounds.outbound.packets_per_second = packets()?,
        "flows" => bounds.flows = Some(values::count(text)?),
        "new_flows" => bounds.new_flows_per_second = packets()?,
        _ => return Err(String::new()),
    }
    Ok(())
}

impl file::Limits {
    /// What is said, with its place: of both directions first.
    fn entries(&self) -> Vec<(&'static str, Location, String)> {
        let texts: [(&str, &Option<Text>); 7] = [
            ("rate", &self.rate),
            ("packets", &self.packets),
            ("rate_inbound", &self.rate_inbound),
            ("rate_outbound", &self.rate_outbound),
            ("packets_inbound", &self.packets_inbound),
            ("packets_outbound", &self.packets_outbound),
            ("new_flows", &self.new_flows),
        ];
        let texts = texts.into_iter().filter_map(|(key, text)| Some((key, text.as_ref()?)));
        let texts = texts.map(|(key, text)| (key, text.referenced, text.value.clone()));
        let flows = self.flows.iter().map(|flows| ("flows", flows.referenced, flows.value.to_string()));
        texts.chain(flows).collect()
    }
}

impl Reader<'_> {
    pub(super) fn limits(&self, written: Option<&file::Limits>) -> Result<Limits> {
        let mut limits = Limits::default();
        let Some(written) = written else { return Ok(limits) };
        let modes = written.mode.iter().map(|mode| ("mode", mode.referenced, mode.value.clone()));
        for (key, at, text) in written.entries().into_iter().chain(modes) {
            set(&mut limits, key, &text).map_err(|error| self.fail(at, error))?;
        }
        let Some(Spanned { value: each, referenced, .. }) = &written.per_caller else { return Ok(limits) };
        if each.per_caller.is_some() || each.mode.is_some() {
            let message = "per_caller: expected neither mode nor per_caller in it, which are said once for all";
            return Err(self.fail(*referenced, message));
        }
        for (key, at, text) in each.entries() {
            set(&mut limits, &format!("{PER_CALLER}{key}"), &text).map_err(|error| self.fail(at, error))?;
        }
        Ok(limits)
    }

    pub(super) fn tenants(
        &mut self,
        entries: &[Spanned<file::Tenant>],
        trust: &Trust,
    ) -> Result<BTreeMap<Name, Limits>> {
        if let Some(tenant) = entries.get(TENANTS_MAX) {
            return Err(self.fail(tenant.referenced, format!("tenants: more than {TENANTS_MAX}")));
        }
        let (mut places, mut tenants) = (Places::default(), BTreeMap::new());
        for Spanned { value: entry, .. } in entries {
            let tenant = self.text("tenant", &entry.tenant, Name::new)?;
            let twice = |line| format!("tenant {tenant} is there twice, first in line {line}");
            places.add(self, &tenant, &entry.tenant, twice)?;
            if !trust.authorities().any(|(known, _)| *known == tenant) {
                let message = format!("tenant {tenant}: no authority of it is in `trust`, so no peer is of it");
                self.warn(entry.tenant.referenced, message);
            }
            let limits = self.limits(Some(&entry.limits))?;
            tenants.insert(tenant, limits);
        }
        Ok(tenants)
    }
}
