//! Walls of the image store that a test takes down to see that it is noticed. Which ones, the
//! environment says; in a build without the feature `removable`, as every release is, all stand and
//! the environment is not read. (The walls around a run are taken down run by run: its launch spec
//! has a field for it.)

/// Whether a wall is to be built: always, but in a build whose walls can be removed.
#[cfg(not(feature = "removable"))]
#[must_use]
pub const fn stands(_wall: &str) -> bool {
    true
}

/// Whether a wall is to be built: always, but in a build whose walls can be removed.
#[cfg(feature = "removable")]
#[must_use]
pub fn stands(wall: &str) -> bool {
    static WITHOUT: std::sync::OnceLock<String> = std::sync::OnceLock::new();
    let without = WITHOUT.get_or_init(|| std::env::var("SANDGLASS_WITHOUT_WALLS").unwrap_or_default());
    !without.split('+').any(|name| name == wall)
}
