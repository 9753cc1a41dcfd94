//! Address plans: every story is told with networks and pools that are the same, overlap in part, differ, and are
//! swapped. A translation with the wrong prefix looks right as long as all sites use the same one.

use crate::Family;
use anyhow::Result;
use ipnet::IpNet;

/// LAN prefixes and pools of the cloud and of the factories, of one family or both.
#[derive(Clone, Debug)]
pub struct Plan {
    pub name: &'static str,
    pub families: Families,
    pub cloud_lan: Vec<IpNet>,
    pub cloud_pool: Vec<IpNet>,
    pub factory_lan: Vec<IpNet>,
    pub factory_pool: Vec<IpNet>,
}

/// Name, cloud's LAN, cloud's pool, factory's LAN, factory's pool.
type Row = (&'static str, &'static str, &'static str, &'static str, &'static str);

const V4: [Row; 4] = [
    ("same", "10.0.0.0/24", "10.0.1.0/24", "10.0.0.0/24", "10.0.1.0/24"),
    ("partly", "10.0.0.0/23", "10.0.8.0/23", "10.0.0.0/24", "10.0.9.0/24"),
    ("different", "10.0.0.0/24", "10.1.0.0/24", "192.168.7.0/24", "172.16.5.0/24"),
    ("swapped", "10.0.0.0/24", "10.0.1.0/24", "10.0.1.0/24", "10.0.0.0/24"),
];

const V6: [Row; 4] = [
    ("same", "fd00:0:0:1::/64", "fd00:0:0:2::/64", "fd00:0:0:1::/64", "fd00:0:0:2::/64"),
    ("partly", "fd00:0:0:0::/62", "fd00:0:0:8::/62", "fd00:0:0:0::/64", "fd00:0:0:9::/64"),
    ("different", "fd00:0:0:1::/64", "fd00:0:0:2::/64", "fd11:2::/64", "fd11:3::/64"),
    ("swapped", "fd00:0:0:1::/64", "fd00:0:0:2::/64", "fd00:0:0:2::/64", "fd00:0:0:1::/64"),
];

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Families {
    V4,
    V6,
    Both,
}

impl Plan {
    /// One of `same`, `partly`, `different` and `swapped`.
    pub fn named(name: &str, families: Families) -> Result<Self> {
        let tables: &[&[Row; 4]] = match families {
            Families::V4 => &[&V4],
            Families::V6 => &[&V6],
            Families::Both => &[&V4, &V6],
        };
        let rows = || tables.iter().flat_map(|table| table.iter()).filter(|row| row.0 == name);
        let column = |pick: fn(&Row) -> &'static str| rows().map(|row| Ok(pick(row).parse()?)).collect::<Result<_>>();
        let known = V4.iter().find(|row| row.0 == name);
        let known = known.ok_or_else(|| anyhow::anyhow!("no address plan is called {name}"))?;
        Ok(Self {
            name: known.0,
            families,
            cloud_lan: column(|row| row.1)?,
            cloud_pool: column(|row| row.2)?,
            factory_lan: column(|row| row.3)?,
            factory_pool: column(|row| row.4)?,
        })
    }

    /// The family a story is told in; IPv4 first where there are both.
    #[must_use]
    pub fn family(&self) -> Family {
        if self.families == Families::V6 { Family::V6 } else { Family::V4 }
    }
}

/// Tells a story with each address plan in each family, each as a test of its own: `for_each_plan!(story)` where
/// `fn story(lab: &Lab, plan: &Plan) -> Result<()>`. `for_each_plan!(story, v4)` for what only IPv4 has,
/// `for_each_plan!(story, both)` for what is told in both at once.
#[macro_export]
macro_rules! for_each_plan {
    ($story:ident) => {
        mod $story {
            $crate::for_each_plan!(@family $story, v4, V4);
            $crate::for_each_plan!(@family $story, v6, V6);
        }
    };
    ($story:ident, v4) => {
        mod $story {
            $crate::for_each_plan!(@family $story, v4, V4);
        }
    };
    ($story:ident, both) => {
        mod $story {
            $crate::for_each_plan!(@family $story, both, Both);
        }
    };
    (@family $story:ident, $module:ident, $family:ident) => {
        mod $module {
            $crate::for_each_plan!(@one $story, $family, same);
            $crate::for_each_plan!(@one $story, $family, partly);
            $crate::for_each_plan!(@one $story, $family, different);
            $crate::for_each_plan!(@one $story, $family, swapped);
        }
    };
    (@one $story:ident, $family:ident, $plan:ident) => {
        #[test]
        fn $plan() {
            let plan = || $crate::Plan::named(stringify!($plan), $crate::Families::$family);
            $crate::story(|lab| super::super::$story(lab, &plan()?));
        }
    };
}
