//! Who the command runs as, from the request's words and the image's own `/etc/passwd` and
//! `/etc/group`. Both files are the image's, so they are read with suspicion: numbers are u32 and
//! nothing wraps, lines and bytes are capped, and what can't be parsed is skipped.

/// The largest file that is looked at.
pub(crate) const MAX_BYTES: u64 = 1024 * 1024;
const MAX_LINES: usize = 20_000;

/// Ids inside the run, and where home is.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) home: String,
}

/// Reads `user`, `user:group`, by number or by name. Empty means root. `width` ids exist in the run.
pub(crate) fn resolve(user: &str, passwd: &str, group: &str, width: u32) -> Result<Identity, String> {
    let (name, group_name) = user.split_once(':').map_or((user, None), |(name, group)| (name, Some(group)));
    let name = if name.is_empty() { "0" } else { name };
    let number = number(name);
    let entry = entries(passwd).find(|entry| match number {
        Some(uid) => entry.uid == uid,
        None => entry.name == name,
    });
    let uid = match (number, &entry) {
        (Some(uid), _) => uid,
        (None, Some(entry)) => entry.uid,
        (None, None) => return Err(format!("the image has no user {name:?} in /etc/passwd")),
    };
    let gid = match group_name {
        Some(group_name) if !group_name.is_empty() => find_group(group_name, group)?,
        _ => entry.as_ref().map_or(0, |entry| entry.gid),
    };
    for (what, id) in [("user", uid), ("group", gid)] {
        if id >= width {
            return Err(format!("{what} id {id} does not exist in the sandbox, which has {width} ids"));
        }
    }
    let home = entry.map(|entry| entry.home).filter(|home| home.starts_with('/'));
    Ok(Identity { uid, gid, home: home.unwrap_or("/").to_owned() })
}

fn find_group(name: &str, group: &str) -> Result<u32, String> {
    if let Some(gid) = number(name) {
        return Ok(gid);
    }
    lines(group)
        .find_map(|line| {
            let mut fields = line.split(':');
            let (found, _password, gid) = (fields.next()?, fields.next()?, fields.next()?);
            (found == name).then(|| number(gid)).flatten()
        })
        .ok_or_else(|| format!("the image has no group {name:?} in /etc/group"))
}

struct Entry<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

fn entries(passwd: &str) -> impl Iterator<Item = Entry<'_>> {
    lines(passwd).filter_map(|line| {
        let fields: Vec<&str> = line.splitn(8, ':').collect();
        let [name, _, uid, gid, _, home, ..] = fields[..] else { return None };
        Some(Entry { name, uid: number(uid)?, gid: number(gid)?, home })
    })
}

fn lines(text: &str) -> impl Iterator<Item = &str> {
    text.lines().take(MAX_LINES).filter(|line| !line.is_empty() && !line.starts_with(['#', '+', '-']))
}

/// Digits only: no sign, no space, no hexadecimal, and never more than u32 holds.
fn number(text: &str) -> Option<u32> {
    (!text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())).then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n# comment\nbad line\nhuge:x:4294967296:0::/:/\nbob:x:1000:50:Bob:/home/bob:/bin/sh\nodd:x:7:7::relative:/bin/sh\n";
    const GROUP: &str = "root:x:0:\nstaff:x:50:bob\nwheel:x:99999:\n";

    fn ids(user: &str) -> Result<(u32, u32, String), String> {
        resolve(user, PASSWD, GROUP, 65536).map(|id| (id.uid, id.gid, id.home))
    }

    #[test]
    fn users_are_found_as_docker_finds_them() {
        for (user, uid, gid, home) in [
            ("", 0, 0, "/root"),
            ("0", 0, 0, "/root"),
            ("bob", 1000, 50, "/home/bob"),
            ("1000", 1000, 50, "/home/bob"),
            ("1000:0", 1000, 0, "/home/bob"),
            ("bob:staff", 1000, 50, "/home/bob"),
            ("4242", 4242, 0, "/"),
            ("4242:4243", 4242, 4243, "/"),
            (":50", 0, 50, "/root"),
            ("odd", 7, 7, "/"),
        ] {
            assert_eq!(ids(user), Ok((uid, gid, home.to_owned())), "{user:?}");
        }
    }

    #[test]
    fn what_does_not_exist_never_becomes_root() {
        for user in [
            "alice",
            "-1",
            " 0",
            "0x0",
            "4294967296",
            "65536",
            "huge",
            "bob:nobody",
            "0:99999",
            "wheel",
            "bob:wheel",
        ] {
            assert!(ids(user).is_err(), "{user:?} became {:?}", ids(user));
        }
    }
}
