//! Generates the messages of `proto/`, which no crate has.
//!
//! They must stay lite: with reflection, the first `descriptor_dyn` costs half a megabyte.

fn main() {
    println!("cargo::rerun-if-changed=proto");
    protobuf_codegen::Codegen::new()
        .pure()
        .include("proto")
        .inputs(["proto/cri.proto", "proto/runtimeoptions.proto", "proto/streaming.proto"])
        .customize(protobuf_codegen::Customize::default().lite_runtime(true).gen_mod_rs(true))
        .cargo_out_dir("proto")
        .run_from_script();
}
