//! The real `vp-ctl` against an agent of a few lines.

mod authority;
mod chain;
mod ends;
mod fake;
mod joining;
mod verbs;
