//! Images that the operator wants to be here before anybody asks for them.

use std::time::Duration;

use image::Images;
use run::Pull;

use crate::log::Chain;

const FIRST_PAUSE: Duration = Duration::from_secs(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(600);

/// Pulls one image after the other, and comes back to those that could not be had. Dropping the
/// future ends it.
pub async fn pull(images: Images, mut wanted: Vec<String>) {
    let mut pause = FIRST_PAUSE;
    while !wanted.is_empty() {
        let mut missing = Vec::new();
        for reference in wanted {
            // It is to stay, so it is not enough that it can be used.
            match images.acquire_with_progress(None, &reference, Pull::Always, &mut |_| {}).await {
                Ok(lease) => {
                    tracing::info!(image = lease.reference, digest = lease.digest, "pulled an image ahead");
                }
                Err(error) => {
                    tracing::warn!(image = reference, error = %Chain(&error), "an image could not be pulled ahead");
                    missing.push(reference);
                }
            }
        }
        if !missing.is_empty() {
            tokio::time::sleep(pause).await;
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
        wanted = missing;
    }
}
