//! A project: a folder with `anabranch.toml` and `views/*.sql`.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anabranch_plan::sql::{self, SqlError};
use anabranch_plan::view::Catalog;
use uuid::Uuid;

use crate::config::{Config, ConfigError};

#[cfg(test)]
mod tests;

const SETTINGS: &str = "anabranch.toml";
const VIEWS: &str = "views";
/// Where a project's data is kept.
const DATA: &str = ".anabranch/";
/// What a new project holds.
const TEMPLATE: [(&str, &str); 2] = [
    (SETTINGS, include_str!("project/template/anabranch.toml")),
    ("views/clicks.sql", include_str!("project/template/views/clicks.sql")),
];

/// The name of a project's data folder, which it keeps for ever: it is made when it is first asked for.
pub fn identity(data: &Path) -> io::Result<String> {
    let path = data.join("project");
    match fs::read_to_string(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        read => return read,
    }
    // Of several processes that begin at once the first names it.
    let own = data.join(format!("project.{}", Uuid::new_v4()));
    let mut file = fs::File::create_new(&own)?;
    file.write_all(Uuid::new_v4().to_string().as_bytes())?;
    file.sync_all()?;
    let linked = fs::hard_link(&own, &path);
    fs::remove_file(&own)?;
    match linked {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => fs::read_to_string(&path),
    }
}

/// A project as loaded: settings, tables and views, all of them sound.
#[derive(Debug, Clone)]
pub struct Project {
    /// Its folder.
    pub dir: PathBuf,
    /// Its settings.
    pub config: Config,
    /// Its tables and views.
    pub catalog: Catalog,
}

/// Why a project can't be loaded or made.
#[derive(Debug, thiserror::Error)]
pub enum ProjectError {
    /// There is no project there.
    #[error("{0} isn't a project: it has no folder `views`; `anabranch init` makes a new project")]
    NotAProject(PathBuf),
    /// There are no views.
    #[error("{0} holds no .sql files; a project's tables and views are in views/*.sql")]
    NoViews(PathBuf),
    /// A new project would overwrite what is there.
    #[error("{0} exists already; a new project needs a folder without it")]
    Exists(PathBuf),
    /// A file isn't text as it has to be.
    #[error("{} {what}; save it as UTF-8", path.display())]
    Encoding {
        /// The file.
        path: PathBuf,
        /// What it is, or where it goes wrong.
        what: String,
    },
    /// A file can't be read or written.
    #[error("{step} {}", path.display())]
    Io {
        /// What was being done.
        step: &'static str,
        /// To what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The settings are wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The tables or views are wrong: every error there is, one a line.
    #[error("{}", .0.iter().map(SqlError::to_string).collect::<Vec<_>>().join("\n"))]
    Sql(Vec<SqlError>),
}

impl Project {
    /// Loads a project's settings, over which the environment's go, and its views.
    pub fn load(dir: &Path, environment: impl IntoIterator<Item = (String, String)>) -> Result<Self, ProjectError> {
        let views = dir.join(VIEWS);
        if !views.is_dir() {
            return Err(ProjectError::NotAProject(dir.to_owned()));
        }
        let settings = dir.join(SETTINGS);
        let config = Config::load(settings.exists().then_some(settings.as_path()), environment)?;
        let mut files = Vec::new();
        for entry in fs::read_dir(&views).map_err(failed("listing", &views))? {
            let path = entry.map_err(failed("listing", &views))?.path();
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            if name.ends_with(".sql") && !name.starts_with('.') && path.is_file() {
                let text = text_of(&path)?;
                files.push((format!("{VIEWS}/{name}"), text));
            }
        }
        if files.is_empty() {
            return Err(ProjectError::NoViews(views));
        }
        files.sort();
        let catalog = sql::plan(&files).map_err(ProjectError::Sql)?;
        Ok(Self { dir: dir.to_owned(), config, catalog })
    }

    /// Makes a new project that runs as it is: a table, a view, and all settings with their defaults, explained.
    pub fn init(dir: &Path) -> Result<(), ProjectError> {
        if let Some(existing) = [SETTINGS, VIEWS].map(|name| dir.join(name)).into_iter().find(|path| path.exists()) {
            return Err(ProjectError::Exists(existing));
        }
        let views = dir.join(VIEWS);
        fs::create_dir_all(&views).map_err(failed("making", &views))?;
        for (name, text) in TEMPLATE {
            let path = dir.join(name);
            let file = fs::OpenOptions::new().write(true).create_new(true).open(&path);
            file.and_then(|mut file| file.write_all(text.as_bytes())).map_err(failed("writing", &path))?;
        }
        ignore_data(&dir.join(".gitignore"))
    }
}

/// Keeps the data out of version control. A file that is there already gets a line more.
fn ignore_data(path: &Path) -> Result<(), ProjectError> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(failed("reading", path)(error)),
    };
    if text.lines().any(|line| line.trim() == DATA) {
        return Ok(());
    }
    let separator = if text.is_empty() || text.ends_with('\n') { "" } else { "\n" };
    fs::write(path, format!("{text}{separator}{DATA}\n")).map_err(failed("writing", path))
}

/// A file of UTF-8. One in another encoding is refused with its name rather than read as something else.
fn text_of(path: &Path) -> Result<String, ProjectError> {
    let bytes = fs::read(path).map_err(failed("reading", path))?;
    let what = match bytes.as_slice() {
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => "is UTF-16".to_owned(),
        _ => match String::from_utf8(bytes) {
            Ok(text) => return Ok(text),
            Err(error) => {
                let valid = &error.as_bytes()[..error.utf8_error().valid_up_to()];
                let line = valid.iter().filter(|&&byte| byte == b'\n').count() + 1;
                format!("isn't UTF-8: its line {line} holds other bytes")
            }
        },
    };
    Err(ProjectError::Encoding { path: path.to_owned(), what })
}

fn failed(step: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ProjectError {
    let path = path.to_owned();
    move |source| ProjectError::Io { step, path, source }
}
