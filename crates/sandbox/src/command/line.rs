//! What the program is called with, and where it may be.

use std::ffi::CString;

use nix::errno::Errno;

use super::reason::explain;
use crate::protocol::LaunchSpec;

/// Where programs are looked for when neither image nor request says.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The longest name that a file can have.
const NAME_MAX: usize = 255;

/// As the kernel wants it.
pub(crate) struct CommandLine {
    /// The paths at which the program may be, in the order in which they are tried.
    pub(crate) candidates: Vec<CString>,
    pub(crate) argv: Vec<CString>,
    pub(crate) env: Vec<CString>,
}

impl CommandLine {
    /// `home` is the user's, for whom neither image nor request says otherwise.
    pub(crate) fn of(spec: &LaunchSpec, home: &str) -> Result<Self, String> {
        let words = |words: &[String]| -> Result<Vec<CString>, String> {
            let made = words.iter().map(|word| CString::new(word.as_str())).collect::<Result<_, _>>();
            made.map_err(|_| "a word of the command contains a NUL byte".to_owned())
        };
        let env = environment(&spec.env, home);
        let program = spec.argv.first().map_or("", String::as_str);
        Ok(Self { candidates: candidates(program, &env)?, argv: words(&spec.argv)?, env: words(&env)? })
    }
}

/// The environment with the two variables that every program expects.
fn environment(given: &[String], home: &str) -> Vec<String> {
    let has =
        |key: &str| given.iter().any(|entry| entry.split_once('=').is_some_and(|(name, _)| name == key));
    let mut env = given.to_vec();
    if !has("PATH") {
        env.push(format!("PATH={DEFAULT_PATH}"));
    }
    if !has("HOME") {
        env.push(format!("HOME={home}"));
    }
    env
}

/// The paths at which the program may be. With a slash in its name there is only one.
fn candidates(program: &str, env: &[String]) -> Result<Vec<CString>, String> {
    if program.is_empty() {
        return Err("the program's name is empty".into());
    }
    let whole =
        |path: String| CString::new(path).map_err(|_| "the program's name contains a NUL byte".to_owned());
    if program.contains('/') {
        return Ok(vec![whole(program.to_owned())?]);
    }
    // With a long name and a PATH of many parts, all of these together would not fit into memory.
    if program.len() > NAME_MAX {
        return Err(explain(program, None, Errno::ENAMETOOLONG));
    }
    let path = env.iter().rev().find_map(|entry| entry.strip_prefix("PATH=")).unwrap_or(DEFAULT_PATH);
    path.split(':')
        .map(|dir| whole(if dir.is_empty() { format!("./{program}") } else { format!("{dir}/{program}") }))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_without_a_slash_is_looked_up_in_the_run_s_path() {
        let env = vec!["PATH=/a::/b".to_owned()];
        let found: Vec<String> =
            candidates("x", &env).unwrap().into_iter().map(|path| path.into_string().unwrap()).collect();
        assert_eq!(found, ["/a/x", "./x", "/b/x"]);
        assert_eq!(candidates("./x", &env).unwrap().len(), 1);
        assert!(candidates("", &env).is_err());
        assert_eq!(candidates(&"x".repeat(NAME_MAX), &env).unwrap().len(), 3);
        assert!(candidates(&"x".repeat(NAME_MAX + 1), &env).is_err());
    }

    #[test]
    fn path_and_home_are_added_only_where_they_are_missing() {
        assert_eq!(environment(&["HOME=/h".into(), "PATH=/p".into()], "/x"), ["HOME=/h", "PATH=/p"]);
        let env = environment(&[], "/x");
        assert_eq!(env, [format!("PATH={DEFAULT_PATH}"), "HOME=/x".to_owned()]);
    }
}
