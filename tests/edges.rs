//! The crates know each other only as `ARCHITECTURE.md` says.

use std::collections::{BTreeMap, BTreeSet};

use cargo_metadata::{DependencyKind, MetadataCommand};

#[test]
fn each_crate_depends_only_on_what_it_may() {
    let metadata = MetadataCommand::new().no_deps().exec().expect("cargo metadata");
    let edges: BTreeMap<&str, BTreeSet<&str>> = metadata
        .packages
        .iter()
        .map(|package| {
            let normal = package.dependencies.iter().filter(|d| d.kind != DependencyKind::Development);
            (package.name.as_str(), normal.map(|d| d.name.as_str()).collect())
        })
        .collect();
    let layers = ["anabranch-speed-layer", "anabranch-batch-layer", "anabranch-serving"];
    let must_not = [
        (
            "anabranch-shared",
            vec!["axum", "duckdb", "anabranch-speed-layer", "anabranch-batch-layer", "anabranch-serving"],
        ),
        ("anabranch-speed-layer", vec!["axum", "duckdb", "anabranch-batch-layer", "anabranch-serving"]),
        ("anabranch-batch-layer", vec!["axum", "duckdb", "anabranch-speed-layer", "anabranch-serving"]),
        ("anabranch-serving", vec!["anabranch-speed-layer", "anabranch-batch-layer"]),
    ];
    for (name, forbidden) in must_not {
        for other in forbidden {
            assert!(!edges[name].contains(other), "{name} must not know {other}");
        }
    }
    for layer in layers {
        assert!(edges[layer].contains("anabranch-shared"), "{layer} speaks the shared vocabulary");
        assert!(edges["anabranch"].contains(layer), "the root package wires {layer}");
    }
    assert_eq!(edges.len(), 5, "a new crate needs its edges here and in ARCHITECTURE.md: {:?}", edges.keys());
}
