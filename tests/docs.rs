//! The documents say what is so: their SQL can be planned, their settings and JSON can be read, their commands are commands, and the
//! pages, files, tests and operations that they name are there.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::support::{Project, Server, anabranch, repository};

/// A document.
struct Page {
    path: PathBuf,
    text: String,
    /// The fenced blocks, each with its language.
    fenced: Vec<(String, String)>,
    /// The lines of indented blocks, where commands stand; one that a `\` ends is joined with the next.
    indented: Vec<String>,
    /// What stands in backticks outside of blocks.
    spans: Vec<String>,
}

impl Page {
    fn read(path: &Path) -> Self {
        let text = std::fs::read_to_string(path).expect("a page");
        let (mut fenced, mut indented, mut prose) = (Vec::new(), Vec::<String>::new(), String::new());
        let mut lines = text.lines();
        let mut before = "";
        while let Some(line) = lines.next() {
            if let Some(language) = line.strip_prefix("```") {
                let block: Vec<&str> = lines.by_ref().take_while(|line| *line != "```").collect();
                fenced.push((language.to_owned(), block.join("\n")));
            } else if line.starts_with("    ") && (before.is_empty() || before.starts_with("    ")) {
                match indented.last_mut().filter(|last| last.ends_with('\\')) {
                    Some(last) => *last = last.trim_end_matches('\\').to_owned() + line.trim(),
                    None => indented.push(line.trim().to_owned()),
                }
            } else {
                prose += line;
                prose.push('\n');
            }
            before = line;
        }
        assert!(prose.matches('`').count().is_multiple_of(2), "{}: a backtick has no other", path.display());
        let spans =
            prose.split('`').skip(1).step_by(2).map(|span| span.split_whitespace().collect::<Vec<_>>().join(" "));
        let spans = spans.collect();
        Self { path: path.to_owned(), text, fenced, indented, spans }
    }

    fn name(&self) -> String {
        self.path.strip_prefix(repository()).unwrap_or(&self.path).display().to_string()
    }

    fn blocks<'a>(&'a self, language: &'a str) -> impl Iterator<Item = &'a str> {
        self.fenced.iter().filter(move |(of, _)| of == language).map(|(_, block)| block.as_str())
    }

    /// The commands of the page's blocks and prose, each as its words.
    fn commands(&self) -> Vec<Vec<String>> {
        let spans = self.spans.iter().filter(|span| span.starts_with("anabranch ") && !span.contains('…'));
        let lines = self.indented.iter().map(String::as_str).chain(spans.map(String::as_str));
        lines.flat_map(|line| line.split(" | ")).map(words).filter(|words| !words.is_empty()).collect()
    }
}

/// The words of a command as a shell reads it, without settings before it, redirections, and what comes after `#` or `&`.
fn words(command: &str) -> Vec<String> {
    let (mut words, mut word, mut quote) = (Vec::new(), String::new(), None);
    for c in command.chars().chain([' ']) {
        match quote {
            Some(end) if c == end => quote = None,
            None if c == '\'' || c == '"' => quote = Some(c),
            None if c == ' ' && word.is_empty() => {}
            None if c == ' ' => words.push(std::mem::take(&mut word)),
            _ => word.push(c),
        }
    }
    let is_setting = |word: &String| {
        word.split_once('=').is_some_and(|(name, _)| name.chars().all(|c| c.is_ascii_uppercase() || c == '_'))
    };
    let ends = |word: &String| word.starts_with(['#', '<', '>', '&']);
    words.into_iter().skip_while(is_setting).take_while(|word| !ends(word)).collect()
}

/// All files of the repository but for what is built and downloaded.
fn files() -> Vec<PathBuf> {
    let (mut found, mut folders) = (Vec::new(), vec![repository().to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("a folder") {
            let entry = entry.expect("an entry");
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with('.') || ["target", "node_modules", "dist"].contains(&name.as_str()) {
                continue;
            }
            match entry.file_type().expect("a type").is_dir() {
                true => folders.push(entry.path()),
                false => found.push(entry.path()),
            }
        }
    }
    found
}

fn pages() -> Vec<Page> {
    let mut pages: Vec<Page> = files()
        .iter()
        .filter(|path| path.extension().is_some_and(|it| it == "md"))
        .map(|path| Page::read(path))
        .collect();
    pages.sort_by_key(Page::name);
    assert!(pages.iter().any(|page| page.name() == "README.md"), "the walk finds the pages");
    pages
}

/// What a command prints, and whether it succeeds.
fn run(arguments: &[&str]) -> (bool, String) {
    let output = anabranch().args(arguments).output().expect("it runs");
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&text).into_owned())
}

fn fail_if_any(faults: &[String]) {
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn the_sql_of_every_page_can_be_planned() {
    let mut faults = Vec::new();
    for page in pages() {
        let sql: Vec<&str> = page.blocks("sql").collect();
        if !sql.is_empty() {
            let project = Project::with_sql(&sql.join("\n")).on_kafka("127.0.0.1:9092");
            let (is_right, said) = run(&["views", "check", &project.path().to_string_lossy()]);
            if !is_right {
                faults.push(format!("{}: {said}", page.name()));
            }
        }
    }
    fail_if_any(&faults);
}

#[test]
fn the_settings_and_the_json_of_every_page_can_be_read() {
    let mut faults = Vec::new();
    for page in pages() {
        for settings in page.blocks("toml") {
            let project = Project::with_sql("");
            project.write("anabranch.toml", settings);
            let (is_right, said) = run(&["config", "show", &project.path().to_string_lossy()]);
            if !is_right {
                faults.push(format!("{}: {said}", page.name()));
            }
        }
        for json in page.blocks("json") {
            let read: Result<Vec<Value>, _> = serde_json::Deserializer::from_str(json).into_iter().collect();
            if let Err(error) = read {
                faults.push(format!("{}: {error} in\n{json}", page.name()));
            }
        }
    }
    fail_if_any(&faults);
}

#[test]
fn the_first_view_of_the_readme_gives_its_first_answer() {
    let page = Page::read(&repository().join("README.md"));
    let sql = page.blocks("sql").next().expect("a view");
    let template = repository().join("src/project/template/views/clicks.sql");
    let template = std::fs::read_to_string(template).expect("what `init` writes");
    let statements: Vec<&str> = template.lines().filter(|line| !line.starts_with("--")).collect();
    assert_eq!(sql, statements.join("\n"), "what `init` writes is what the page shows");

    let project = Project::with_sql(sql);
    let server = Server::start(&project);
    for event in page.indented.iter().filter_map(|line| line.strip_prefix("echo '")) {
        server.post("clicks", event.split('\'').next().unwrap_or_default().to_owned());
    }
    server.settle("clicks_per_url");
    let mut answer = server.get("/v1/views/clicks_per_url/rows?window=latest");
    answer["definition"] = "sha256:…".into();
    let shown: Value = serde_json::from_str(page.blocks("json").next().expect("an answer")).expect("JSON");
    assert_eq!(answer, shown);
}

/// Why a command isn't one, if so. Of another program's nothing is known.
fn wrong_command(words: &[String], api: &Value, targets: &BTreeSet<&str>) -> Option<String> {
    let (program, arguments) = words.split_first()?;
    match program.as_str() {
        // The benchmarks are a program of their own, which isn't built for tests.
        "anabranch" if arguments.first().is_some_and(|word| word == "bench") => {
            let (name, source) =
                (arguments.get(1)?, std::fs::read_to_string(repository().join("benches/src/main.rs")).expect("read"));
            let variant = format!("\n    {}{}", name[..1].to_uppercase(), &name[1..]);
            (!source.contains(&variant)).then(|| format!("there is no benchmark `{name}`"))
        }
        "anabranch" => {
            // Everything before `--help` is read first.
            let arguments = arguments.iter().map(|word| if word == "N" { "1" } else { word });
            let arguments: Vec<&str> = arguments.chain(["--help"]).collect();
            let (is_right, said) = run(&arguments);
            (!is_right).then_some(said)
        }
        "make" => {
            let unknown = arguments.iter().find(|target| !targets.contains(target.as_str()))?;
            Some(format!("the Makefile has no target `{unknown}`"))
        }
        "docker" => {
            let file = arguments.iter().skip_while(|word| *word != "-f").nth(1)?;
            (!repository().join(file).is_file()).then(|| format!("there is no {file}"))
        }
        "curl" => {
            let url = arguments.iter().find(|word| word.starts_with("http://"))?;
            let is_post = arguments.iter().any(|word| ["-d", "--data-binary"].contains(&word.as_str()));
            let said = arguments.iter().skip_while(|word| *word != "-X").nth(1).map(|method| method.to_lowercase());
            let method = said.unwrap_or_else(|| if is_post { "post" } else { "get" }.to_owned());
            let path = url.splitn(4, '/').nth(3).unwrap_or_default();
            wrong_operation(&method, &format!("/{path}"), api)
        }
        _ => None,
    }
}

/// Why the API has no such operation, if so.
fn wrong_operation(method: &str, url: &str, api: &Value) -> Option<String> {
    let (path, query) = url.split_once('?').unwrap_or((url, ""));
    let path = path.trim_end_matches('/');
    if ["", "/docs", "/openapi.json"].contains(&path) {
        return None;
    }
    let fits = |template: &str| {
        let (wanted, found) = (template.split('/').collect::<Vec<_>>(), path.split('/').collect::<Vec<_>>());
        wanted.len() == found.len() && wanted.iter().zip(&found).all(|(w, f)| w == f || w.starts_with('{'))
    };
    let operations = api["paths"].as_object().expect("paths").iter();
    let Some(operation) = operations.filter(|(template, _)| fits(template)).find_map(|(_, it)| it.get(method)) else {
        return Some(format!("the API has no {method} {path}"));
    };
    let known = |name: &str| {
        let parameters = operation["parameters"].as_array().into_iter().flatten();
        name.starts_with("key.") || parameters.filter_map(|it| it["name"].as_str()).any(|it| it == name)
    };
    let names = query.split('&').filter_map(|pair| pair.split_once('=')).map(|(name, _)| name);
    let unknown: Vec<&str> = names.filter(|name| !known(name)).collect();
    (!unknown.is_empty()).then(|| format!("{method} {path} has no parameters {unknown:?}"))
}

#[test]
fn every_command_and_operation_that_a_page_names_is_one() {
    let api = std::fs::read_to_string(repository().join("serving/openapi.json")).expect("the API's description");
    let api: Value = serde_json::from_str(&api).expect("JSON");
    let makefile = std::fs::read_to_string(repository().join("Makefile")).expect("the Makefile");
    let targets: BTreeSet<&str> =
        makefile.lines().filter_map(|line| line.split_once(':')).map(|(name, _)| name).collect();
    let mut faults = Vec::new();
    for page in pages() {
        for command in page.commands() {
            if let Some(why) = wrong_command(&command, &api, &targets) {
                faults.push(format!("{}: {}: {why}", page.name(), command.join(" ")));
            }
        }
        for span in &page.spans {
            let Some((method, url)) =
                span.split_once(' ').filter(|(method, _)| ["GET", "POST", "DELETE"].contains(method))
            else {
                continue;
            };
            if !span.contains('…')
                && let Some(why) = wrong_operation(&method.to_lowercase(), url, &api)
            {
                faults.push(format!("{}: {span}: {why}", page.name()));
            }
        }
    }
    fail_if_any(&faults);
}

/// The anchors of a page's headings, as GitHub makes them.
fn anchors(text: &str) -> BTreeSet<String> {
    let headings = text.lines().filter(|line| line.starts_with('#')).map(|line| line.trim_start_matches('#').trim());
    let letters = |heading: &str| {
        let kept = heading.to_lowercase().replace(' ', "-");
        kept.chars().filter(|c| c.is_alphanumeric() || "-_".contains(*c)).collect()
    };
    headings.map(letters).collect()
}

#[test]
fn every_link_of_a_page_leads_somewhere() {
    let mut faults = Vec::new();
    for page in pages() {
        for link in page.text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if link.contains("://") {
                continue;
            }
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = if file.is_empty() { page.path.clone() } else { page.path.with_file_name(file) };
            let leads = match anchor {
                "" => target.exists(),
                anchor => std::fs::read_to_string(&target).is_ok_and(|text| anchors(&text).contains(anchor)),
            };
            if !leads {
                faults.push(format!("{}: {link} leads nowhere", page.name()));
            }
        }
    }
    fail_if_any(&faults);
}

#[test]
fn every_source_file_and_test_that_a_page_names_is_there() {
    let files = files();
    let sources: Vec<String> = files
        .iter()
        .filter(|path| path.extension().is_some_and(|it| it == "rs"))
        .map(|path| std::fs::read_to_string(path).expect("a source"))
        .collect();
    let is_path = |span: &str| span.chars().all(|c| c.is_ascii_alphanumeric() || "._-/".contains(c));
    let is_test = |span: &str| {
        span.contains("::")
            && span.contains('_')
            && span.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "_:".contains(c))
    };
    let mut faults = Vec::new();
    for page in pages() {
        for span in &page.spans {
            if is_path(span) && [".rs", ".md", ".yaml"].iter().any(|end| span.ends_with(end) && span.len() > end.len())
            {
                if !files.iter().any(|path| path.ends_with(span.trim_start_matches("../"))) {
                    faults.push(format!("{}: there is no file {span}", page.name()));
                }
            } else if is_test(span) {
                let name = span.rsplit(':').next().unwrap_or_default();
                let forms = [format!("fn {name}("), format!("mod {name};"), format!("mod {name} {{")];
                if !sources.iter().any(|text| forms.iter().any(|form| text.contains(form.as_str()))) {
                    faults.push(format!("{}: there is no {span}", page.name()));
                }
            }
        }
    }
    fail_if_any(&faults);
}

/// What a page has in backticks.
fn named_in(page: &str) -> BTreeSet<String> {
    let page = Page::read(&repository().join(page));
    page.spans.iter().map(|span| span.split('(').next().unwrap_or_default().to_owned()).collect()
}

#[test]
fn every_setting_has_its_place_in_the_operations_page() {
    let template =
        std::fs::read_to_string(repository().join("src/project/template/anabranch.toml")).expect("the template");
    let settings = template.lines().filter_map(|line| line.strip_prefix("# ")?.split_once(" = ")).map(|(name, _)| name);
    let named = named_in("docs/operations.md");
    let missing: Vec<&str> = settings.filter(|name| !name.contains(' ') && !named.contains(*name)).collect();
    assert!(missing.is_empty(), "docs/operations.md lacks {missing:?}");
}

/// The functions of SQL, as `anabranch views functions` lists them.
fn functions() -> Vec<Value> {
    let (is_right, listed) = run(&["views", "functions", "--output", "json"]);
    assert!(is_right, "{listed}");
    let listed: Value = serde_json::from_str(&listed).expect("JSON");
    listed["functions"].as_array().expect("a list").clone()
}

#[test]
fn the_page_of_functions_is_the_catalog() {
    let mut text = String::new();
    for (kind, title) in [("scalar", "Functions of a row"), ("aggregate", "Aggregates")] {
        text += &format!(
            "## {title}\n\n| function | its type | null | what it is | in DuckDB | in Spark |\n|---|---|---|---|---|---|\n"
        );
        for function in functions().iter().filter(|function| function["kind"] == kind) {
            let shown = |name: &str| function[name].as_str().unwrap_or("the same").to_owned();
            let also = shown("also")
                .split(", ")
                .filter(|name| !name.is_empty())
                .map(|name| format!(", `{name}`"))
                .collect::<String>();
            let (name, takes) = (shown("name"), shown("takes"));
            let each = ["gives", "null", "what", "duckdb", "spark"].map(shown).join(" | ");
            text += &format!("| `{name}{takes}`{also} | {each} |\n");
        }
        text += "\n";
    }
    let path = repository().join("docs/sql.md");
    let page = std::fs::read_to_string(&path).expect("the page");
    let (head, _) = page.split_once("## ").expect("a title");
    let wanted = format!("{head}{}", text.trim_end()) + "\n";
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, &wanted).expect("written");
    }
    assert_eq!(page, wanted, "UPDATE_DOCS=1 writes it anew");
}

#[test]
fn every_function_is_compared_with_duckdb() {
    let compared = ["tests/grid.rs", "tests/random/view.rs"];
    let compared: String =
        compared.map(|path| std::fs::read_to_string(repository().join(path)).expect("a file")).concat();
    let is_compared = |function: &Value| {
        let name = function["name"].as_str().expect("a name");
        compared.contains(&format!("{name}(")) || compared.contains(&format!("\"{name}\""))
    };
    let missing: Vec<_> = functions().into_iter().filter(|function| !is_compared(function)).collect();
    assert!(missing.is_empty(), "{missing:#?}");
}

#[test]
fn every_function_and_option_of_sql_has_its_place_in_the_views_page() {
    let sql = "CREATE TABLE t (x TEXT, ts TIMESTAMP) WITH (event_time = 'ts');
        CREATE TABLE u (ts TIMESTAMP) WITH (event_time = 'ts', qqqqqqqqqqqq = '1');
        CREATE MATERIALIZED VIEW v WITH (qqqqqqqqqqqq = '1') AS SELECT x, count(*) AS n FROM t GROUP BY x;
        CREATE MATERIALIZED VIEW w AS SELECT qqqqqqqqqqqq(x) AS y, count(*) AS n FROM t GROUP BY y;";
    let project = Project::with_sql(sql);
    let (_, said) = run(&["views", "check", &project.path().to_string_lossy()]);
    let after = |start: &'static str| said.split(start).skip(1).filter_map(|rest| rest.lines().next());
    let known: BTreeSet<&str> = after("; there are ")
        .chain(after("the aggregates are "))
        .flat_map(|rest| rest.split([',', ' ', '`', ';']))
        .filter(|word| !["", "the", "functions"].contains(word))
        .collect();
    assert!(["watermark", "allowed_lateness", "sum", "lower"].iter().all(|word| known.contains(word)), "{said}");
    let named = named_in("docs/views.md");
    let missing: Vec<&&str> = known.iter().filter(|name| !named.contains(**name)).collect();
    assert!(missing.is_empty(), "docs/views.md lacks {missing:?}");
}
