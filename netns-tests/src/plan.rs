//! Address plans: every story is told with networks and pools that are the same, overlap in part, differ, and are
//! swapped. A translation with the wrong prefix looks right as long as all sites use the same one.

use anyhow::Result;
use ipnet::IpNet;

/// LAN prefixes and pools of the cloud and of the factories, of one family or both.
#[derive(Clone, Debug)]
pub struct Plan {
    pub name: &'static str,
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
            cloud_lan: column(|row| row.1)?,
            cloud_pool: column(|row| row.2)?,
            factory_lan: column(|row| row.3)?,
            factory_pool: column(|row| row.4)?,
        })
    }
}

/// Tells a story with each address plan, each as a test of its own: `for_each_plan!(story, Families::V4)` where
/// `fn story(lab: &Lab, plan: &Plan) -> Result<()>`.
#[macro_export]
macro_rules! for_each_plan {
    ($story:ident, $families:expr) => {
        mod $story {
            $crate::for_each_plan!(@one $story, $families, same);
            $crate::for_each_plan!(@one $story, $families, partly);
            $crate::for_each_plan!(@one $story, $families, different);
            $crate::for_each_plan!(@one $story, $families, swapped);
        }
    };
    (@one $story:ident, $families:expr, $plan:ident) => {
        #[test]
        fn $plan() {
            use $crate::Families;
            $crate::story(|lab| super::$story(lab, &$crate::Plan::named(stringify!($plan), $families)?));
        }
    };
}
