//! Makes the images that `cargo xtask bench images` measures with.

fn main() {
    println!("{}", support::stock::bench().display());
}
