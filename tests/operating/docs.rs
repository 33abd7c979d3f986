//! The operators' pages say what is so: every setting, every error text, every link.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use support::{Finished, sandglass};

use crate::{file, text};

/// Defaults that are another on every machine stand there in words.
const DEPENDS: [&str; 11] = [
    "bodies_bytes_max",
    "data_dir",
    "prepared_max",
    "slots",
    "budget_cpus",
    "budget_memory_bytes",
    "maxima.cpus",
    "launcher",
    "docker_config",
    "maxima.memory_bytes",
    "maxima.open_files",
];

#[test]
fn every_setting_stands_in_the_documentation_with_its_default() {
    let printed = Finished::output(&sandglass(), &["serve", "--print-config"]);
    let mut settings = BTreeMap::new();
    let mut table = String::new();
    for line in printed.lines() {
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            table = format!("{name}.");
        } else if let Some((name, value)) = line.split_once(" = ") {
            settings.insert(format!("{table}{name}"), format!("`{value}`"));
        }
    }
    let page = text("docs/operating/configuration.md");
    let rows = page.lines().filter_map(|line| line.strip_prefix("| `")?.split_once("` | "));
    let mut documented: BTreeMap<String, String> = rows
        .map(|(name, rest)| (name.to_owned(), rest.split(" | ").next().unwrap_or_default().to_owned()))
        .collect();
    assert!(settings.len() > 40);
    for name in DEPENDS {
        settings.remove(name).expect("a setting");
        assert!(!documented.remove(name).expect("a row").is_empty(), "{name}");
    }
    assert_eq!(settings, documented, "run `cargo xtask docs`");
}

/// Every file below a folder of the repository with one of these endings.
fn files(folder: &str, endings: &[&str]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![file(folder)];
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(&folder).expect("list a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|end| endings.iter().any(|wanted| end == *wanted)) {
                found.push(path);
            }
        }
    }
    found
}

#[test]
fn every_error_text_in_the_troubleshooting_is_one_that_the_service_can_say() {
    let mut code = String::new();
    for path in files("server", &["rs"]).iter().chain(&files("crates", &["rs"])) {
        code += &std::fs::read_to_string(path).expect("read a source file");
    }
    // A text may go on in the next line of the source.
    let words = |text: &str| text.replace("\\\n", " ").split_whitespace().collect::<Vec<_>>().join(" ");
    let code = words(&code);
    let page = text("docs/operating/troubleshooting.md");
    let texts: Vec<_> =
        page.lines().filter_map(|line| line.strip_prefix("### `")?.strip_suffix('`')).collect();
    assert!(texts.len() > 15);
    // The operating system's and a library's own words.
    let foreign = ["Address already in use", "unknown field"];
    for text in texts.iter().filter(|text| !foreign.contains(text)) {
        assert!(code.contains(text), "nothing says {text:?}");
    }
}

#[test]
fn every_link_leads_to_a_file() {
    for page in files("docs/operating", &["md"]) {
        let text = std::fs::read_to_string(&page).expect("read a page");
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let link = link.split('#').next().unwrap_or_default();
            let there = page.parent().unwrap_or(Path::new("/")).join(link);
            assert!(link.starts_with("https://") || there.exists(), "{} links to {link}", page.display());
        }
    }
}

/// A promise without a test would be a wish.
#[test]
fn every_number_that_is_promised_has_a_test() {
    let page = text("docs/SPECIFICATION.md");
    let rows: Vec<_> =
        page.lines().filter(|line| line.starts_with("| ") && line.contains("` in `")).collect();
    let promises = page.lines().filter(|line| line.starts_with("| ") && !line.contains("| test |")).count();
    assert_eq!(rows.len(), promises, "every promise names a test and its file");
    assert!(rows.len() > 15);
    for row in rows {
        let (before, after) = row.rsplit_once("` in `").expect("a test and its file");
        let test = before.rsplit('`').next().expect("a test");
        let path = after.split('`').next().expect("a file");
        let source = text(path);
        let declared = format!("fn {test}()");
        let at = source.find(&declared).unwrap_or_else(|| panic!("{path} has no {test}"));
        let above = source[..at].trim_end_matches("async ").trim_end();
        let attribute = above.lines().next_back().unwrap_or_default().trim();
        let is_test = attribute == "#[test]" || attribute.starts_with("#[tokio::test");
        assert!(is_test, "{test} is no test");
    }
}
