//! The dashboard's files become part of this crate, so they have to be there first.

fn main() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../dashboards/dist");
    println!("cargo::rerun-if-changed={folder}");
    println!("cargo::rerun-if-changed={folder}/index.html");
    if !std::path::Path::new(folder).join("index.html").is_file() {
        println!("cargo::error=the dashboard isn't built: run `make dashboards`, which writes dashboards/dist");
    }
}
