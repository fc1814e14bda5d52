use std::fs;
use std::path::Path;

use super::{Project, ProjectError};
use crate::config::Config;

fn load(dir: &Path) -> Result<Project, ProjectError> {
    Project::load(dir, [])
}

#[test]
fn a_new_project_loads_and_is_never_overwritten() {
    let folder = tempfile::tempdir().expect("a folder");
    let dir = folder.path().join("a").join("mine");
    Project::init(&dir).expect("a new project");
    let project = load(&dir).expect("it loads");
    assert_eq!(project.config, Config::default());
    assert!(project.catalog.views.contains_key("clicks_per_url"));
    assert_eq!(fs::read_to_string(dir.join(".gitignore")).expect("it is there"), ".anabranch/\n");

    assert!(matches!(Project::init(&dir), Err(ProjectError::Exists(path)) if path == dir.join("anabranch.toml")));
    fs::remove_file(dir.join("anabranch.toml")).expect("removed");
    assert!(matches!(Project::init(&dir), Err(ProjectError::Exists(path)) if path == dir.join("views")));
}

#[test]
fn an_ignore_file_that_is_there_gets_a_line_more() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join(".gitignore");
    fs::write(&path, "/target").expect("written");
    Project::init(folder.path()).expect("a new project");
    assert_eq!(fs::read_to_string(&path).expect("it is there"), "/target\n.anabranch/\n");
}

/// The settings in the template are the defaults, but for those that have none.
#[test]
fn the_template_explains_the_defaults() {
    let is_setting = |line: &&str| {
        let none = ["retention_", "brokers", "replication", "[storage]", "checkpoints = ", "hosts = ", "# timeout"];
        let has_none = none.iter().any(|name| line.contains(name));
        (line.starts_with('[') || line.starts_with("# ") && line.contains(" = ")) && !has_none
    };
    let text: Vec<&str> =
        super::TEMPLATE[0].1.lines().filter(is_setting).map(|line| line.trim_start_matches("# ")).collect();
    assert!(text.contains(&"keep_versions = 5"));
    let shown = Config::default().to_toml().expect("it can be written");
    let settings =
        |lines: &[&str]| lines.iter().filter(|line| !line.is_empty()).map(|line| line.to_string()).collect::<Vec<_>>();
    assert_eq!(settings(&text), settings(&shown.lines().collect::<Vec<_>>()));
}

#[test]
fn the_examples_load() {
    for (example, views, outputs) in [
        ("social", vec!["trending_hashtags"], vec![]),
        ("clicks", vec!["clicks_by_user", "clicks_per_url", "traffic"], vec![]),
        ("etl", vec!["revenue"], vec!["purchases", "words"]),
    ] {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples").join(example);
        let project = load(&dir).unwrap_or_else(|error| panic!("{example}: {error}"));
        let names = |names: &mut dyn Iterator<Item = String>| names.collect::<Vec<_>>();
        assert_eq!(names(&mut project.catalog.kept_names().cloned()), views);
        assert_eq!(names(&mut project.catalog.sent().map(|view| view.id.name.clone())), outputs);
        assert!(project.catalog.kept().all(|view| view.aggregation().schedule.is_some()));
    }
}

#[test]
fn what_is_missing_or_wrong_is_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let dir = folder.path();
    assert!(load(&dir.join("none")).is_err_and(|error| error.to_string().contains("none isn't a project")));
    assert!(matches!(load(dir), Err(ProjectError::NotAProject(_))));
    let views = dir.join("views");
    fs::create_dir(&views).expect("made");
    fs::write(views.join("notes.txt"), "none").expect("written");
    fs::write(views.join(".draft.sql"), "none").expect("written");
    assert!(matches!(load(dir), Err(ProjectError::NoViews(path)) if path == views));

    fs::write(views.join("b.sql"), "CREATE MATERIALIZED VIEW v AS SELECT count(*) AS n FROM u").expect("written");
    fs::write(views.join("a.sql"), "\n  CREATE TABLE t (ts TIMESTAMP) WITH (event_time = 'at')").expect("written");
    let error = load(dir).expect_err("both files are wrong").to_string();
    assert_eq!(
        error,
        "views/a.sql:2:52: unknown column `at`; table `t` has `ts`\nviews/b.sql:1:57: unknown table `u`; there are no tables"
    );

    fs::write(views.join("a.sql"), "CREATE TABLE u (ts TIMESTAMP) WITH (event_time = 'ts')").expect("written");
    fs::write(dir.join("anabranch.toml"), "[server]\nport = 1").expect("written");
    let error = load(dir).expect_err("the settings are wrong").to_string();
    assert!(
        error.contains("anabranch.toml:2:1: unknown field `port`, expected one of `listen`, `public`, `hosts`"),
        "{error}"
    );

    fs::remove_file(dir.join("anabranch.toml")).expect("removed");
    let environment = [("ANABRANCH__BATCH__KEEP_VERSIONS".to_owned(), "9".to_owned())];
    let project = Project::load(dir, environment).expect("settings are optional");
    assert_eq!(project.config.batch.keep_versions, 9);
}

#[cfg(unix)]
#[test]
fn views_may_be_links() {
    let folder = tempfile::tempdir().expect("a folder");
    let (one, two) = (folder.path().join("one"), folder.path().join("two"));
    Project::init(&one).expect("a new project");
    fs::create_dir_all(two.join("views")).expect("made");
    std::os::unix::fs::symlink(one.join("views/clicks.sql"), two.join("views/linked.sql")).expect("linked");
    assert_eq!(load(&two).expect("it loads").catalog.views.len(), 1);
}

#[test]
fn a_file_that_isnt_utf8_is_refused_with_its_encoding() {
    let dir = tempfile::tempdir().expect("a folder");
    let views = dir.path().join("views");
    std::fs::create_dir(&views).expect("a folder");
    let path = views.join("a.sql");
    let text: Vec<u8> = "CREATE TABLE".encode_utf16().flat_map(u16::to_le_bytes).collect();
    for (bytes, says) in [
        ([&[0xff, 0xfe], text.as_slice()].concat(), "is UTF-16; save it as UTF-8"),
        (b"-- one\n-- caf\xe9\n".to_vec(), "isn't UTF-8: its line 2 holds other bytes; save it as UTF-8"),
    ] {
        std::fs::write(&path, bytes).expect("written");
        let error = Project::load(dir.path(), Vec::new()).expect_err("refused").to_string();
        assert_eq!(error, format!("{} {says}", path.display()));
    }
}
