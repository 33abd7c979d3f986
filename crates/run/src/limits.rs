//! What a run may use. A request names some limits; the defaults fill the rest; the maxima bound all.

use serde::{Deserialize, Serialize};

macro_rules! limits {
    ($($(#[$doc:meta])* $name:ident: $type:ty = $default:expr, from $min:expr, max $max:expr;)*) => {
        /// The limits in force for one run. Every one is enforced, or named in `not_enforced`.
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        #[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
        #[serde(deny_unknown_fields, default)]
        pub struct Limits { $($(#[$doc])* pub $name: $type,)* }

        impl Default for Limits {
            fn default() -> Self {
                Self { $($name: $default,)* }
            }
        }

        /// The limits that a request asks for; an absent one means the server's default.
        #[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
        #[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
        #[serde(deny_unknown_fields, default)]
        pub struct LimitsRequest {
            $($(#[$doc])* #[serde(skip_serializing_if = "Option::is_none")] pub $name: Option<$type>,)*
        }

        /// The most that any request may ask for.
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        #[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
        #[serde(deny_unknown_fields, default)]
        pub struct Maxima { $($(#[$doc])* pub $name: $type,)* }

        impl Default for Maxima {
            fn default() -> Self {
                Self { $($name: $max,)* }
            }
        }

        impl Maxima {
            /// The most of each that both allow.
            #[must_use]
            pub fn capped_by(&self, most: &LimitsRequest) -> Self {
                Self { $($name: most.$name.map_or(self.$name, |most| if most < self.$name { most } else { self.$name }),)* }
            }
        }

        impl Limits {
            /// Defaults that somebody may have for whom these are the maxima.
            #[must_use]
            pub fn capped_by(&self, maxima: &Maxima) -> Self {
                Self { $($name: if maxima.$name < self.$name { maxima.$name } else { self.$name },)* }
            }
        }

        impl LimitsRequest {
            /// Fills in the defaults and refuses what lies over the maxima, naming each bad limit.
            pub fn resolve(&self, defaults: &Limits, maxima: &Maxima) -> Result<Limits, Vec<BadLimit>> {
                let mut bad = Vec::new();
                $(
                    let $name = self.$name.unwrap_or(defaults.$name);
                    // Written so that a value that is no number is refused too.
                    let within = $name >= $min && $name <= maxima.$name;
                    if !within {
                        bad.push(BadLimit {
                            name: stringify!($name),
                            asked: $name.to_string(),
                            min: $min.to_string(),
                            max: maxima.$name.to_string(),
                        });
                    }
                )*
                if bad.is_empty() { Ok(Limits { $($name,)* }) } else { Err(bad) }
            }
        }
    };
}

const MIB: u64 = 1024 * 1024;

// The smallest values are those with which a sandbox can still be built around the program: below
// them it would be our set-up that hits the limit, not the program.

limits! {
    /// Time from the start of the program to its end, in milliseconds.
    wall_time_ms: u64 = 10_000, from 1, max 300_000;
    /// Processor time of all processes of the run together, in milliseconds.
    cpu_time_ms: u64 = 5_000, from 1, max 1_200_000;
    /// Everything that the kernel charges to the run, files written in it included, in bytes.
    memory_bytes: u64 = 256 * MIB, from 2 * MIB, max u64::MAX;
    /// Processes and threads alive at once, our own init not among them.
    processes: u64 = 64, from 1, max 4096;
    /// Bytes of standard output that are kept.
    stdout_bytes: u64 = MIB, from 1, max 64 * MIB;
    /// Bytes of standard error that are kept.
    stderr_bytes: u64 = MIB, from 1, max 64 * MIB;
    /// Bytes of files that the run may have at once.
    disk_bytes: u64 = 64 * MIB, from 1, max 1024 * MIB;
    /// Files and folders that the run may have at once.
    inodes: u64 = 10_000, from 1, max 1_000_000;
    /// The largest single file that the run may write, in bytes.
    file_size_bytes: u64 = 64 * MIB, from 1, max 1024 * MIB;
    /// Descriptors open at once in one process.
    open_files: u64 = 256, from 1, max 65_536;
    /// Stack of the main thread, in bytes.
    stack_bytes: u64 = 8 * MIB, from 64 * 1024, max 1024 * MIB;
    /// Processors' worth of time per second of wall time.
    cpus: f64 = 1.0, from 0.01, max 64.0;
}

/// A limit that was asked for and can't be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{name} is {asked}; it must be at least {min} and at most {max}")]
pub struct BadLimit {
    pub name: &'static str,
    pub asked: String,
    pub min: String,
    pub max: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(request: &LimitsRequest) -> Result<Limits, Vec<BadLimit>> {
        request.resolve(&Limits::default(), &Maxima::default())
    }

    #[test]
    fn absent_limits_are_the_defaults() {
        assert_eq!(resolve(&LimitsRequest::default()), Ok(Limits::default()));
        let request = LimitsRequest { processes: Some(1), ..Default::default() };
        assert_eq!(resolve(&request).unwrap(), Limits { processes: 1, ..Default::default() });
    }

    #[test]
    fn zero_too_much_and_not_a_number_are_each_named() {
        let request = LimitsRequest {
            wall_time_ms: Some(0),
            memory_bytes: Some(MIB),
            processes: Some(4097),
            cpus: Some(f64::NAN),
            ..Default::default()
        };
        let names: Vec<_> = resolve(&request).unwrap_err().iter().map(|bad| bad.name).collect();
        assert_eq!(names, ["wall_time_ms", "memory_bytes", "processes", "cpus"]);
    }

    #[test]
    fn maxima_of_ones_own_only_ever_lower_what_is_allowed() {
        let own = LimitsRequest { wall_time_ms: Some(50), processes: Some(1 << 40), ..Default::default() };
        let maxima = Maxima::default().capped_by(&own);
        assert_eq!(maxima, Maxima { wall_time_ms: 50, ..Default::default() });
        let defaults = Limits::default().capped_by(&maxima);
        assert_eq!(defaults, Limits { wall_time_ms: 50, ..Default::default() });
        assert!(LimitsRequest::default().resolve(&defaults, &maxima).is_ok());
    }

    #[test]
    fn an_unknown_limit_is_refused() {
        let error = serde_json::from_str::<LimitsRequest>(r#"{"memory": 5}"#).unwrap_err();
        assert!(error.to_string().contains("unknown field `memory`"), "{error}");
    }
}
