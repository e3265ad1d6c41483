//! Makes, inspects and looks after volumes. All of it lives in [`kmsfs::cli`].

fn main() -> std::process::ExitCode {
    kmsfs::cli::ctl::main()
}
