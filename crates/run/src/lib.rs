//! The nouns of Sandglass: what a run is asked to be, what it may use and how it ended.
//! Nothing here does I/O; everything here is data or a pure decision over data.

mod command;
mod file;
mod limits;
mod outcome;
mod principal;
mod record;
mod spec;
mod verdict;

mod bytes;

pub use command::{BadCommand, Command, MAX_WORD_BYTES, MAX_WORDS_BYTES};
pub use file::{BadFileId, FileId, StoredFile};
pub use limits::{BadLimit, Limits, LimitsRequest, Maxima};
pub use outcome::{Evidence, Exit, KilledFor, Outcome, SetupFailure, Stream, signal_name};
pub use principal::{BadName, ImagePattern, Principal, PrincipalName, Quota, Scope};
pub use record::{
    Encoding, ImageRef, LimitHit, Output, OutputContent, Problem, Run, RunId, RunOutput, RunState, Timings,
    Usage,
};
pub use spec::{
    FileContent, FileSpec, OnOutputLimit, OutputEncoding, OutputPattern, Profile, Pull, RunSpec, Stdin,
};
pub use verdict::{Compare, Verdict};
