//! The dashboard's files become part of this crate, so they have to be there first.

fn main() {
    // Asked for at run time: clones that share a target directory share this program too.
    let here = std::env::var("CARGO_MANIFEST_DIR").expect("cargo says where the crate is");
    let folder = format!("{here}/../dashboards/dist");
    println!("cargo::rerun-if-changed={folder}");
    println!("cargo::rerun-if-changed={folder}/index.html");
    if !std::path::Path::new(&folder).join("index.html").is_file() {
        println!("cargo::error=the dashboard isn't built: run `make dashboards`, which writes dashboards/dist");
    }
}
