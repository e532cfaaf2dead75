//! Compiles the contracts without `protoc`.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let contracts = [
        "launcher.proto",
        "hooks_info.proto",
        "hooks_v1alpha2.proto",
        "hooks_v1alpha3.proto",
    ];
    let files = protox::compile(contracts, ["proto"])?;
    tonic_prost_build::configure().compile_fds(files)?;
    Ok(())
}
