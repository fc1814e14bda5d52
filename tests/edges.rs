//! The crates know each other only as `ARCHITECTURE.md` says.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use cargo_metadata::{DependencyKind, MetadataCommand};

/// What each crate may know of the others, and what it must not know besides.
const EDGES: [(&str, &[&str], &[&str]); 10] = [
    ("plan", &[], &["arrow", "fjall", "object_store", "polars", "rdkafka", "tokio"]),
    ("log", &[], &["arrow", "object_store", "polars", "sqlparser"]),
    ("engine", &["log", "plan"], &["object_store", "sqlparser", "tokio"]),
    ("store", &["plan"], &["fjall", "polars", "rdkafka", "sqlparser"]),
    ("exchange", &SHARED, &["fjall", "rdkafka", "sqlparser"]),
    ("speed-layer", &SHARED, &["rdkafka", "sqlparser"]),
    ("batch-layer", &SHARED, &["rdkafka", "sqlparser"]),
    ("serving", &SHARED, &["rdkafka", "sqlparser"]),
    ("", &LAYERS, &["rdkafka", "sqlparser"]),
    ("benches", &LAYERS, &[]),
];

const SHARED: [&str; 5] = ["engine", "exchange", "log", "plan", "store"];

const LAYERS: [&str; 9] = ["", "batch-layer", "engine", "exchange", "log", "plan", "serving", "speed-layer", "store"];

#[test]
fn each_crate_depends_only_on_what_it_may() {
    let metadata = MetadataCommand::new().no_deps().exec().expect("cargo metadata");
    let mut left: BTreeMap<&str, BTreeSet<&str>> = metadata
        .packages
        .iter()
        .map(|package| {
            let normal = package.dependencies.iter().filter(|d| d.kind == DependencyKind::Normal);
            (package.name.as_str(), normal.map(|d| d.name.as_str()).collect())
        })
        .collect();
    let full = |name: &str| if name.is_empty() { "anabranch".to_owned() } else { format!("anabranch-{name}") };
    for (name, may, must_not) in EDGES {
        let known = left.remove(full(name).as_str()).unwrap_or_else(|| panic!("there is no crate {}", full(name)));
        let may: BTreeSet<String> = may.iter().map(|other| full(other)).collect();
        for other in known {
            assert!(!other.starts_with("anabranch") || may.contains(other), "{} must not know {other}", full(name));
            assert!(!must_not.contains(&other), "{} must not know {other}", full(name));
            assert!(other != "axum" || name == "serving", "{} must not know {other}", full(name));
            assert!(other != "duckdb" || name == "benches", "what the product is compared with isn't linked into it");
        }
    }
    assert!(left.is_empty(), "a new crate needs its edges here and in ARCHITECTURE.md: {:?}", left.keys());
}

#[test]
fn unsafe_code_stands_in_the_files_that_architecture_names_only() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let architecture = std::fs::read_to_string(root.join("ARCHITECTURE.md")).expect("read");
    let (mut found, mut folders) = (BTreeSet::new(), vec![root.to_owned()]);
    while let Some(folder) = folders.pop() {
        for path in std::fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path()) {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if path.is_dir() && !name.starts_with('.') && !["target", "node_modules"].contains(&&*name) {
                folders.push(path);
            } else if path.extension().is_some_and(|it| it == "rs") {
                let source = std::fs::read_to_string(&path).expect("read");
                // Each place has to be allowed by name, as the lint is denied.
                if source.contains(concat!("expect(unsafe", "_code")) {
                    found.insert(path.strip_prefix(root).expect("below").display().to_string());
                }
            }
        }
    }
    assert!(!found.is_empty());
    let unnamed: Vec<_> = found.iter().filter(|path| !architecture.contains(&format!("`{path}`"))).collect();
    assert!(unnamed.is_empty(), "{unnamed:?}");
}

/// Each crate of a selection with the features that it is built with.
fn built(selection: &[&str]) -> BTreeSet<String> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let tree = ["tree", "--locked", "--offline", "-e", "normal,build", "--prefix", "none", "-f", "{p} {f}"];
    let output = std::process::Command::new(cargo).args(tree).args(selection).output().expect("cargo tree");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let lines = String::from_utf8(output.stdout).expect("text");
    lines.lines().map(|line| line.trim_end_matches(" (*)").to_owned()).collect()
}

#[test]
fn the_product_alone_is_built_as_it_is_beside_the_benchmarks() {
    let product = built(&["--workspace", "--exclude", "anabranch-benches"]);
    let all = built(&["--workspace"]);
    let other: Vec<_> = product.difference(&all).collect();
    assert!(other.is_empty(), "these would be built twice, see the comment in Cargo.toml: {other:#?}");
}

/// The modules that a path behind `crate::` begins with: several, if it begins with a list.
fn named(path: &str) -> Vec<String> {
    let first =
        |path: &str| path.trim_start().chars().take_while(|c| c.is_ascii_lowercase() || *c == '_').collect::<String>();
    if !path.starts_with('{') {
        return vec![first(path)];
    }
    let (mut names, mut depth) = (Vec::new(), 0);
    for (i, c) in path.char_indices() {
        depth += i32::from(c == '{') - i32::from(c == '}');
        match (depth, c) {
            (0, _) => break,
            (1, '{' | ',') => names.push(first(&path[i + 1..])),
            _ => {}
        }
    }
    names
}

/// What stands behind a path in a source, each time that it isn't the end of a longer one.
fn behind<'a>(code: &'a str, path: &'a str) -> impl Iterator<Item = &'a str> {
    let places = code.match_indices(path).filter(|(at, _)| !code[..*at].ends_with("::"));
    places.map(|(at, _)| &code[at + path.len()..])
}

/// The modules of a folder of sources, the path of whose own module is `of`: those beside it that each names outside of comments,
/// with all that stands below it.
fn modules(folder: &Path, of: &str) -> BTreeMap<String, BTreeSet<String>> {
    let mut found: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for path in std::fs::read_dir(next).expect("a folder").map(|entry| entry.expect("an entry").path()) {
            let below = path.strip_prefix(folder).expect("below").to_owned();
            if below.to_string_lossy().contains("tests") {
                continue;
            }
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|it| it == "rs") {
                let top = below.components().next().expect("a name").as_os_str().to_string_lossy();
                let top = top.trim_end_matches(".rs").to_owned();
                let source = std::fs::read_to_string(&path).expect("read");
                let code = source.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
                let code = code.lines().filter(|line| !line.trim_start().starts_with("//"));
                let code = code.collect::<Vec<_>>().join("\n");
                let upwards = "super::".repeat(below.components().count());
                let paths = behind(&code, of).chain(behind(&code, &upwards));
                let of_top = found.entry(top.clone()).or_default();
                of_top.extend(paths.flat_map(named).filter(|name| *name != top));
            }
        }
    }
    let all: BTreeSet<String> = found.keys().cloned().collect();
    found.values_mut().for_each(|named| named.retain(|name| all.contains(name)));
    found
}

/// Checks the modules of a folder, and those of the folders in it.
fn check_modules(folder: &Path, of: &str) {
    let mut left = modules(folder, of);
    // What names nothing that is left is taken away, until nothing is left or all name each other.
    while let Some(lowest) = left.iter().find(|(_, named)| named.is_empty()).map(|(name, _)| name.clone()) {
        left.remove(&lowest);
        for named in left.values_mut() {
            named.remove(&lowest);
        }
    }
    assert!(left.is_empty(), "modules of {} that are in a circle, or above one: {left:#?}", folder.display());
    for path in std::fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path()) {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if path.is_dir() && !name.contains("tests") {
            check_modules(&path, &format!("{of}{name}::"));
        }
    }
}

#[test]
fn no_module_looks_up_to_one_that_looks_down_to_it() {
    assert_eq!(named("{one, two::{Three, four}, five}; six"), ["one", "two", "five"]);
    assert_eq!(behind("super::one super::super::two x::super::three", "super::").count(), 2);
    let of_shared = SHARED.map(|name| format!("shared/{name}"));
    for of_crate in of_shared.iter().map(String::as_str).chain(["speed-layer", "batch-layer", "serving", "."]) {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(of_crate).join("src");
        assert!(modules(&folder, "crate::").values().any(|named| !named.is_empty()), "{of_crate} names modules");
        check_modules(&folder, "crate::");
    }
}
