mod dataplane;
mod sys;
fn main() {}
