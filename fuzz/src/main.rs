//! The targets under libFuzzer; `cargo xtask fuzz` builds and runs it. `MCP_MQTT_FUZZ_TARGET` names the target.
#![cfg_attr(fuzzing, no_main)]

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    static TARGET: std::sync::LazyLock<mcp_mqtt_fuzz::Target> = std::sync::LazyLock::new(|| {
        let name = std::env::var("MCP_MQTT_FUZZ_TARGET").expect("MCP_MQTT_FUZZ_TARGET names a target");
        mcp_mqtt_fuzz::target(&name).expect("MCP_MQTT_FUZZ_TARGET names one of the targets")
    });
    (TARGET.run)(data);
});

#[cfg(not(fuzzing))]
fn main() {
    let names = mcp_mqtt_fuzz::TARGETS.map(|target| target.name).join(", ");
    eprintln!("cargo xtask fuzz runs the targets: {names}");
}
