//! The mount program.

fn main() {
    std::process::exit(kmsfs::cli::mount::main());
}
