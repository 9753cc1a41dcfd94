//! Compiles the schema without protoc.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=control.proto");
    println!("cargo::rerun-if-changed=identity.proto");
    println!("cargo::rerun-if-changed=joining.proto");
    println!("cargo::rerun-if-changed=etcd.proto");
    if std::env::var_os("CARGO_FEATURE_CONTROL").is_some() {
        let files = protox::compile(["control.proto"], ["."])?;
        tonic_prost_build::configure().compile_fds(files)?;
        let files = protox::compile(["etcd.proto"], ["."])?;
        tonic_prost_build::configure().build_server(false).compile_fds(files)?;
    }
    if std::env::var_os("CARGO_FEATURE_IDENTITY").is_some() {
        let files = protox::compile(["identity.proto", "joining.proto"], ["."])?;
        tonic_prost_build::configure().build_client(false).build_server(false).compile_fds(files)?;
    }
    Ok(())
}
