//! Everything that crosses a process or a wire: the local interface's JSON ([`api`]) and the control channel
//! between agents (`control`, schema in `control.proto`), what an authority signs (`identity`, schema in
//! `identity.proto`), what a site joins with (`joining`, schema in `joining.proto`), and what a hub's registry says to etcd
//! (`etcd`).

pub mod api;
pub mod chain;
pub mod time;

#[cfg(feature = "control")]
pub mod control {
    //! Generated from `control.proto`.
    #![allow(clippy::all, unused_qualifications)]
    include!(concat!(env!("OUT_DIR"), "/vp.control.v1.rs"));
}

#[cfg(feature = "control")]
pub mod etcd {
    //! Generated from `etcd.proto`.
    #![allow(clippy::all, unused_qualifications)]
    include!(concat!(env!("OUT_DIR"), "/etcdserverpb.rs"));
}

#[cfg(feature = "identity")]
pub mod identity {
    //! Generated from `identity.proto`.
    #![allow(clippy::all, unused_qualifications)]
    include!(concat!(env!("OUT_DIR"), "/vp.identity.v1.rs"));
}

#[cfg(feature = "identity")]
pub mod joining {
    //! Generated from `joining.proto`.
    #![allow(clippy::all, unused_qualifications)]
    include!(concat!(env!("OUT_DIR"), "/vp.joining.v1.rs"));
}
