//! The command `holdfast`, whole, as the tests start it.

fn main() -> std::process::ExitCode {
    holdfast_cli::main()
}
