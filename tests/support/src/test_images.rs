//! Makes the stock images, so that the first test does not have to wait for them.

fn main() {
    println!("the test images are in {}", support::stock::registry().display());
    println!("the toolbox is in {}", support::stock::toolbox().display());
}
