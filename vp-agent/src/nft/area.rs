//! Address ranges with ports, as nftables sets want them: intervals that do not overlap.

use std::collections::BTreeSet;

type Ports = Vec<(u16, u16)>;

/// Each address of `addresses` with each port of `ports`; both ends included.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Area {
    pub(super) addresses: (u128, u128),
    pub(super) ports: (u16, u16),
}

/// What `plus` covers and `minus` does not, in areas that do not overlap.
pub(super) fn disjoint(plus: &[Area], minus: &[Area]) -> Vec<Area> {
    // Between two neighbouring edges the same areas cover every address.
    let edges: BTreeSet<u128> = plus
        .iter()
        .chain(minus)
        .flat_map(|area| [Some(area.addresses.0), area.addresses.1.checked_add(1)])
        .flatten()
        .collect();
    let edges: Vec<u128> = edges.into_iter().collect();
    let mut rows: Vec<((u128, u128), Ports)> = Vec::new();
    for (number, first) in edges.iter().enumerate() {
        let last = edges.get(number + 1).map_or(u128::MAX, |next| next - 1);
        let here = |areas: &[Area]| {
            let covers = |area: &&Area| area.addresses.0 <= *first && *first <= area.addresses.1;
            union(areas.iter().filter(covers).map(|area| area.ports).collect())
        };
        let ports = without(here(plus), &here(minus));
        match rows.last_mut() {
            Some((addresses, same)) if *same == ports && addresses.1 + 1 == *first => addresses.1 = last,
            _ if ports.is_empty() => {}
            _ => rows.push(((*first, last), ports)),
        }
    }
    let areas =
        |(addresses, ports): ((u128, u128), Ports)| ports.into_iter().map(move |ports| Area { addresses, ports });
    rows.into_iter().flat_map(areas).collect()
}

fn union(mut ports: Ports) -> Ports {
    ports.sort_unstable();
    let mut union: Ports = Vec::new();
    for (first, last) in ports {
        match union.last_mut() {
            Some(range) if u32::from(first) <= u32::from(range.1) + 1 => range.1 = range.1.max(last),
            _ => union.push((first, last)),
        }
    }
    union
}

fn without(ports: Ports, minus: &Ports) -> Ports {
    minus.iter().fold(ports, |ports, (first, last)| {
        let rest = |(from, to): (u16, u16)| {
            let below = first.checked_sub(1).map(|end| (from, to.min(end)));
            let above = last.checked_add(1).map(|start| (from.max(start), to));
            [below, above].into_iter().flatten().filter(|(from, to)| from <= to)
        };
        ports.into_iter().flat_map(rest).collect()
    })
}

/// Of 1024 to 65535 what `own` leaves, in ranges wide enough to find a free port in; the widest first.
pub(super) fn free_ports(own: &[u16]) -> Ports {
    const WIDE: u16 = 1024;
    let own = union(own.iter().map(|port| (*port, *port)).collect());
    let mut ranges = without(vec![(1024, u16::MAX)], &own);
    ranges.sort_by_key(|(first, last)| std::cmp::Reverse(last - first));
    let wide = ranges.iter().filter(|(first, last)| last - first >= WIDE).count();
    ranges.truncate(wide.max(1));
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn covers(areas: &[Area], address: u128, port: u16) -> usize {
        let has = |area: &&Area| {
            (area.addresses.0..=area.addresses.1).contains(&address) && (area.ports.0..=area.ports.1).contains(&port)
        };
        areas.iter().filter(has).count()
    }

    fn areas() -> impl Strategy<Value = Vec<Area>> {
        let area = (0u128..12, 0u128..4, 0u16..12, 0u16..4).prop_map(|(address, more, port, ports)| Area {
            addresses: (address, address + more),
            ports: (port, port + ports),
        });
        proptest::collection::vec(area, 0..6)
    }

    proptest! {
        #[test]
        fn areas_cover_what_was_asked_for_and_nothing_twice(plus in areas(), minus in areas()) {
            let areas = disjoint(&plus, &minus);
            for address in 0..18 {
                for port in 0..18 {
                    let wanted = covers(&plus, address, port) > 0 && covers(&minus, address, port) == 0;
                    prop_assert_eq!(covers(&areas, address, port), usize::from(wanted));
                }
            }
        }
    }

    #[test]
    fn the_ends_of_addresses_and_ports_are_not_passed() {
        let all = Area { addresses: (0, u128::MAX), ports: (0, u16::MAX) };
        let one = Area { addresses: (u128::MAX, u128::MAX), ports: (0, u16::MAX) };
        assert_eq!(disjoint(&[all], &[]), [all]);
        assert_eq!(disjoint(&[all], &[one]), [Area { addresses: (0, u128::MAX - 1), ..all }]);
    }

    #[test]
    fn own_ports_are_never_free_and_narrow_ranges_are_left_out() {
        assert_eq!(free_ports(&[]), [(1024, 65535)]);
        assert_eq!(free_ports(&[51820, 53, 51821]), [(1024, 51819), (51822, 65535)]);
        assert_eq!(free_ports(&[65535, 1024, 65000]), [(1025, 64999)]);
    }
}
