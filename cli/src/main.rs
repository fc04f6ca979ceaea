//! The `holdfast` command: see the library.

fn main() -> std::process::ExitCode {
    holdfast_cli::main()
}
