//! Compiles the schema without protoc.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=control.proto");
    if std::env::var_os("CARGO_FEATURE_CONTROL").is_some() {
        let files = protox::compile(["control.proto"], ["."])?;
        tonic_prost_build::configure().compile_fds(files)?;
    }
    Ok(())
}
