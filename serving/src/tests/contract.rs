//! Whether answers are what `openapi.json` declares: their status, their media type, and each of their fields.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use boon::{Compiler, SchemaIndex, Schemas};
use serde_json::{Value, json};

/// The address under which the validator has the description.
const ADDRESS: &str = "http://anabranch/openapi.json";

static API: LazyLock<Api> = LazyLock::new(Api::new);

/// Fails if an answer isn't as declared. The events of a stream are left to [`check_event`].
pub fn check(method: &str, path: &str, status: u16, content_type: &str, body: &[u8]) {
    let problem = API.problem(method, path, status, content_type, body);
    assert!(problem.is_none(), "openapi.json doesn't declare this answer: {}", problem.unwrap_or_default());
}

/// Fails if an event of the stream at a path isn't as declared.
pub fn check_event(path: &str, name: &str, data: &Value) {
    let event = json!({"event": name, "data": data}).to_string();
    check("GET", path, 200, EVENT, event.as_bytes());
}

/// Stands for the media type of a stream where one event of it is checked.
const EVENT: &str = "an event";

/// The answers of an operation by status and media type: the schema of their content, if they have any.
type Answers = BTreeMap<(u16, String), Option<SchemaIndex>>;

/// What the description declares.
struct Api {
    schemas: Schemas,
    /// By path and method.
    operations: BTreeMap<(String, String), Answers>,
    refusal: SchemaIndex,
}

impl Api {
    fn new() -> Self {
        let mut api: Value = serde_json::from_str(include_str!("../../openapi.json")).expect("JSON");
        close_all(&mut api);
        let (mut compiler, mut schemas) = (Compiler::new(), Schemas::new());
        compiler.add_resource(ADDRESS, api.clone()).expect("an address");
        let mut compile = |place: &[&str]| {
            let pointer: String = place.iter().map(|name| format!("/{}", name.replace('/', "~1"))).collect();
            compiler.compile(&format!("{ADDRESS}#{pointer}"), &mut schemas).expect("a schema")
        };
        let mut operations = BTreeMap::<_, Answers>::new();
        let entries = |of: &Value| of.as_object().cloned().unwrap_or_default();
        for (path, item) in entries(&api["paths"]) {
            for (method, operation) in entries(&item) {
                let answers = operations.entry((path.clone(), method.to_uppercase())).or_default();
                for (status, response) in entries(&operation["responses"]) {
                    let code: u16 = status.parse().expect("a status");
                    let content = entries(&response["content"]);
                    if content.is_empty() {
                        answers.insert((code, String::new()), None);
                    }
                    for media_type in content.keys() {
                        let place = ["paths", &path, &method, "responses", &status, "content", media_type, "schema"];
                        answers.insert((code, media_type.clone()), Some(compile(&place)));
                    }
                }
            }
        }
        let refusal = compile(&["components", "schemas", "Problem"]);
        Self { schemas, operations, refusal }
    }

    /// What isn't as declared.
    fn problem(&self, method: &str, path: &str, status: u16, content_type: &str, body: &[u8]) -> Option<String> {
        let path = path.split('?').next().unwrap_or_default();
        let media_type = content_type.split(';').next().unwrap_or_default();
        let said = |what: &str| Some(format!("{method} {path}: {status} {media_type}: {what}"));
        let asked = if method == "HEAD" { "GET" } else { method };
        let operation = self.operations.iter().find(|((of, by), _)| by == asked && matches(of, path));
        let declared = if media_type == EVENT { "text/event-stream" } else { media_type };
        let schema = match operation {
            Some((_, answers)) => match answers.get(&(status, declared.to_owned())) {
                Some(schema) => *schema,
                None => return said("no such answer"),
            },
            // The dashboard's files, `/docs`, and methods that a path doesn't have.
            None => Some(self.refusal).filter(|_| media_type == "application/problem+json"),
        };
        if method == "HEAD" || media_type == "text/event-stream" {
            return None;
        }
        let Some(schema) = schema else {
            return if operation.is_none() || body.is_empty() { None } else { said("there is content") };
        };
        let content = match media_type {
            "application/json" | "application/problem+json" | EVENT => match serde_json::from_slice(body) {
                Ok(content) => content,
                Err(error) => return said(&error.to_string()),
            },
            _ => Value::from(String::from_utf8_lossy(body)),
        };
        let wrong = self.schemas.validate(&content, schema).err()?;
        said(&format!("{wrong:#}\n{content}"))
    }
}

/// Whether a described path such as `/v1/views/{view}` is that of a request.
fn matches(described: &str, path: &str) -> bool {
    let is_same = |(described, part): (&str, &str)| described.starts_with('{') || described == part;
    described.split('/').count() == path.split('/').count() && described.split('/').zip(path.split('/')).all(is_same)
}

/// Lets objects have no fields but those that are declared, in all of the description.
fn close_all(api: &mut Value) {
    for schema in api["components"]["schemas"].as_object_mut().into_iter().flat_map(|all| all.values_mut()) {
        close(schema, true);
    }
    let operations = api["paths"].as_object_mut().into_iter().flat_map(|paths| paths.values_mut());
    let operations = operations.filter_map(Value::as_object_mut).flat_map(|item| item.values_mut());
    let answers = operations.filter_map(|operation| operation["responses"].as_object_mut());
    let contents = answers.flat_map(|answers| answers.values_mut()).filter_map(|answer| answer.get_mut("content"));
    for media_type in contents.filter_map(Value::as_object_mut).flat_map(|content| content.values_mut()) {
        close(&mut media_type["schema"], false);
    }
}

/// Lets objects have no fields but those that are declared. A component, or a part of an `allOf`, may declare but some of them: what
/// refers to it is closed.
fn close(schema: &mut Value, is_part: bool) {
    let Value::Object(keywords) = schema else { return };
    for (keyword, value) in keywords.iter_mut() {
        match (keyword.as_str(), value) {
            ("properties", Value::Object(fields)) => fields.values_mut().for_each(|field| close(field, false)),
            ("items" | "additionalProperties", of) => close(of, false),
            ("oneOf" | "anyOf", Value::Array(some)) => some.iter_mut().for_each(|one| close(one, is_part)),
            ("allOf", Value::Array(parts)) => parts.iter_mut().for_each(|part| close(part, true)),
            _ => {}
        }
    }
    let names_fields =
        ["$ref", "properties", "oneOf", "anyOf", "allOf"].iter().any(|name| keywords.contains_key(*name));
    if !is_part && names_fields {
        keywords.insert("unevaluatedProperties".to_owned(), false.into());
    }
}

#[test]
fn a_field_that_is_not_declared_or_not_there_is_found_at_any_depth() {
    let api: Value = serde_json::from_str(include_str!("../../openapi.json")).expect("JSON");
    let answer = &api["components"]["schemas"]["RowsAnswer"]["example"];
    let wrong = |path: &str, content: &Value, content_type: &str| {
        API.problem("GET", path, 200, content_type, content.to_string().as_bytes()).unwrap_or_default()
    };
    let rows = |answer: &Value| wrong("/v1/views/a/rows?limit=1", answer, "application/json");
    let event = |answer: &Value| wrong("/v1/stream", &json!({"event": "append", "data": answer}), EVENT);
    assert_eq!((rows(answer), event(answer)), (String::new(), String::new()));
    for (place, field) in ["", "/sources", "/sources/batch", "/window"].map(|place| (place, "colour")) {
        let mut more = answer.clone();
        more.pointer_mut(place).expect("an object")[field] = json!("red");
        assert!(rows(&more).contains(&format!("at '{place}/{field}'")), "{}", rows(&more));
        assert!(event(&more).contains(&format!("at '/data{place}/{field}'")), "{}", event(&more));
    }
    for (place, field) in [("", "exact"), ("/sources", "batch"), ("/sources/speed", "offsets")] {
        let mut less = answer.clone();
        less.pointer_mut(place).and_then(Value::as_object_mut).expect("an object").remove(field);
        assert!(rows(&less).contains(&format!("'{field}'")), "{place}: {}", rows(&less));
    }
    let mut long = answer.clone();
    long["sources"]["batch"]["offsets"]["tweets"]["0"] = json!([0, 1, 2]);
    assert_ne!(rows(&long), "");
    assert!(API.problem("GET", "/v1/views/a/rows", 418, "application/json", b"{}").is_some());
    assert!(API.problem("GET", "/v1/views/a/rows", 304, "", b"more").is_some());
}
