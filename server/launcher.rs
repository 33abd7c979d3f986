//! The launcher's binary: small, static, one thread. Everything it does is in `sandbox` and `unpack`.

fn main() -> std::process::ExitCode {
    sandbox::launcher::main(sandbox::launcher::Jailed { unpack: unpack::jailed, pack: unpack::pack_jailed })
}
