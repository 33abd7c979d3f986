//! Builds the image that the Dockerfile makes, so that the first test does not have to wait for it.

fn main() {
    println!("the container's image is {}", support::dockerfile::image().display());
}
