use super::*;

fn location(text: &str) -> Result<Location, String> {
    Location::try_from(text.to_owned())
}

#[test]
fn a_place_is_a_folder_or_a_prefix_in_a_bucket_and_is_shown_as_it_was_written() {
    for folder in ["checkpoints", "../up here/ä#1", "/srv/50 %"] {
        assert_eq!(location(folder), Ok(Location::Folder(folder.into())));
        assert_eq!(location(folder).expect("a folder").to_string(), folder);
    }
    assert_eq!(location("file:///srv/50%20%25"), Ok(Location::Folder("/srv/50 %".into())));
    for (text, bucket, prefix) in
        [("s3://b_1/of/ours", "b_1", "of/ours"), ("s3://Bucket", "Bucket", ""), ("s3://b/%C3%A4", "b", "ä")]
    {
        let prefix = Path::parse(prefix).expect("a path");
        assert_eq!(location(text), Ok(Location::S3 { bucket: bucket.to_owned(), prefix: prefix.clone() }));
    }
    assert_eq!(location("s3://b/of/ours/").expect("a prefix").to_string(), "s3://b/of/ours");
}

#[test]
fn anything_else_is_refused_and_not_repeated() {
    for text in [
        "",
        "gs://bucket/x",
        "s3a://bucket",
        "https://bucket.s3.amazonaws.com/x",
        "s3:bucket",
        "s3://",
        "s3:///x",
        "s3://bucket//x",
        "s3://bucket/../x?region=there",
        "s3://key:hunter2@bucket/x",
        "s3://bucket:9000/x",
        "file://host/x",
    ] {
        let problem = location(text).expect_err(text);
        assert!(problem.contains("`s3://bucket/prefix`") && !problem.contains("hunter2"), "{text}: {problem}");
    }
}

#[test]
fn a_place_that_cant_be_used_is_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("file");
    std::fs::write(&file, b"").expect("written");
    let error = Storage::open(Location::Folder(file.join("below")), &BTreeMap::new()).expect_err("below a file");
    assert_eq!(error.to_string(), format!("opening the storage `{}` failed", file.join("below").display()));
    let options = BTreeMap::from([("aws_allow_http".to_owned(), "maybe".to_owned())]);
    let error = Storage::open(location("s3://bucket/x").expect("a place"), &options).expect_err("no truth value");
    assert_eq!(error.to_string(), "opening the storage `s3://bucket/x` failed");
    assert!(error.source.to_string().contains("maybe"), "{}", error.source);
}
