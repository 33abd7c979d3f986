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
        for (tests, path) in named(row) {
            let source = text(path);
            for test in tests {
                assert!(is_test(&source, test), "{path} has no test {test}");
            }
        }
    }
}

/// The tests that a row names, with the file of each: "`a` and `b` in `file`, in full by `cargo xtask …`".
fn named(row: &str) -> Vec<(Vec<&str>, &str)> {
    let cell = row.trim_end_matches(" |").rsplit(" | ").next().expect("a cell");
    // What has a space in it is a command.
    let words = cell.split('`').skip(1).step_by(2).filter(|word| !word.contains(' '));
    let mut all = Vec::new();
    let mut tests = Vec::new();
    for word in words {
        if word.ends_with(".rs") {
            all.push((std::mem::take(&mut tests), word));
        } else {
            tests.push(word);
        }
    }
    assert!(tests.is_empty() && all.iter().all(|(tests, _)| !tests.is_empty()), "{row}");
    all
}

/// Whether it is a test that is run.
fn is_test(source: &str, name: &str) -> bool {
    let Some(at) = source.find(&format!("fn {name}()")) else { return false };
    let above = source[..at].trim_end_matches("async ").trim_end();
    let attribute = above.lines().next_back().unwrap_or_default().trim();
    attribute == "#[test]" || attribute.starts_with("#[tokio::test")
}

/// A file of tests that no program is made of would never be run.
#[test]
fn every_file_of_tests_is_part_of_a_test_program() {
    let programs = text("Cargo.toml");
    for entry in std::fs::read_dir(file("tests")).expect("list the tests") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let (program, main) = match path.is_dir() {
            true => (path.join("main.rs"), format!("tests/{name}/main.rs")),
            false => (path, format!("tests/{name}")),
        };
        if program.extension().is_some_and(|end| end == "rs") && program.is_file() {
            assert!(programs.contains(&format!("path = \"{main}\"")), "Cargo.toml has no {main}");
        }
    }
}
