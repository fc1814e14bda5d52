use std::cmp::Ordering;

use anabranch_plan::sql;
use anabranch_plan::view::{Catalog, Kept};
use polars::prelude::*;
use proptest::prelude::*;

use super::exact::{Wide, write_whole};
use crate::group::Keep;
use crate::partial::{Part, Scope, merge, partials, windows};
use crate::transform::polars_type;

const SQL: &str = "
CREATE TABLE events (d DOUBLE, v BIGINT, p DOUBLE, ts TIMESTAMP NOT NULL) WITH (event_time = 'ts');
CREATE MATERIALIZED VIEW doubles AS SELECT sum(d) AS sum, avg(d) AS mean, var_pop(d) AS var, var_samp(d) AS vs,
       stddev_pop(d) AS sd, min(d) AS least, max(d) AS most, arg_max(d, p) AS last, arg_min(d, p) AS first,
       count(DISTINCT d) AS values, approx_percentile(d, 0.5) AS middle FROM events;
CREATE MATERIALIZED VIEW wholes AS SELECT sum(v) AS sum, avg(v) AS mean FROM events;
CREATE MATERIALIZED VIEW keyed AS SELECT d AS k, count(*) AS n FROM events GROUP BY d;
";

fn catalog() -> Catalog {
    sql::plan(&[("test.sql".to_owned(), SQL.to_owned())]).expect("planned")
}

fn kept(catalog: &Catalog, name: &str) -> Kept {
    catalog.kept_view(name).expect("a view that keeps something")
}

fn frame(doubles: &[f64], wholes: &[i64], places: &[f64]) -> LazyFrame {
    let height = doubles.len().max(wholes.len());
    let get = |values: &[f64]| (0..height).map(|i| values.get(i).copied()).collect::<Vec<_>>();
    let columns = vec![
        Column::new("d".into(), get(doubles)),
        Column::new("v".into(), (0..height).map(|i| wholes.get(i).copied()).collect::<Vec<_>>()),
        Column::new("p".into(), get(places)),
        Column::new("ts".into(), vec![0_i64; height]),
    ];
    let frame = DataFrame::new(height, columns).expect("alike").lazy();
    frame.with_column(col("ts").cast(polars_type(&anabranch_plan::schema::DataType::Timestamp)))
}

fn of(view: &Kept, doubles: &[f64]) -> DataFrame {
    partials(view, frame(doubles, &[], doubles), false).expect("partials")
}

fn rows(view: &Kept, parts: Vec<DataFrame>) -> DataFrame {
    let parts: Vec<Part> = parts.into_iter().map(|partials| Part { partials, slack: None }).collect();
    windows(view.aggregation(), &parts, Scope::All).expect("rows").rows
}

fn number(rows: &DataFrame, name: &str) -> Option<f64> {
    rows.column(name).expect("a column").f64().expect("doubles").get(0)
}

/// The bits of all doubles of an answer.
fn bits(rows: &DataFrame) -> Vec<Option<u64>> {
    let doubles = rows.columns().iter().filter_map(|column| column.f64().ok());
    doubles.map(|column| column.get(0).map(f64::to_bits)).collect()
}

fn sum(doubles: &[f64]) -> f64 {
    let catalog = catalog();
    number(&rows(&kept(&catalog, "doubles"), vec![of(&kept(&catalog, "doubles"), doubles)]), "sum").expect("a sum")
}

/// All orders of some values.
fn orders(values: &[f64]) -> Vec<Vec<f64>> {
    if values.len() < 2 {
        return vec![values.to_vec()];
    }
    let each = (0..values.len()).flat_map(|i| {
        let rest = [&values[..i], &values[i + 1..]].concat();
        orders(&rest).into_iter().map(move |rest| [&[values[i]], &rest[..]].concat())
    });
    each.collect()
}

/// Python's `math.fsum`: Shewchuk's partial sums, the last one rounded half to even. Of sums that stay finite on the way.
fn fsum(values: &[f64]) -> f64 {
    let two = |x: f64, y: f64| {
        let (x, y) = if x.abs() < y.abs() { (y, x) } else { (x, y) };
        let high = x + y;
        (high, y - (high - x))
    };
    let mut partials: Vec<f64> = Vec::new();
    for &value in values {
        let mut x = value;
        let mut kept = Vec::new();
        for &y in &partials {
            let (high, low) = two(x, y);
            if low != 0.0 {
                kept.push(low);
            }
            x = high;
        }
        kept.push(x);
        partials = kept;
    }
    let mut high = partials.pop().unwrap_or(0.0);
    let mut low = 0.0;
    while let Some(y) = partials.pop() {
        (high, low) = two(high, y);
        if low != 0.0 {
            break;
        }
    }
    if partials.last().is_some_and(|next| (low < 0.0 && *next < 0.0) || (low > 0.0 && *next > 0.0)) {
        let (twice, rounded) = (low * 2.0, high + low * 2.0);
        if twice == rounded - high {
            high = rounded;
        }
    }
    high + 0.0
}

fn double() -> impl Strategy<Value = f64> {
    prop_oneof![
        4 => any::<i32>().prop_map(|cents| f64::from(cents) / 100.0),
        2 => (any::<f64>(), -40..40_i32).prop_map(|(x, e)| if x.is_finite() { x.signum() * (1.0 + (x.to_bits() & 0xffff_ffff) as f64 / 3e9) * 2_f64.powi(e) } else { 1.5 }),
        1 => prop::sample::select(vec![1e16, -1e16, 1.0, -1.0, 0.1, -0.1, 1e-300, 5e-324, -5e-324, 1e300, -1e300, 2.2e-308, 0.0, -0.0]),
    ]
}

fn special() -> impl Strategy<Value = f64> {
    prop_oneof![
        6 => double(),
        3 => any::<f64>(),
        1 => prop::sample::select(vec![f64::MAX, f64::MIN, 1e308, -1e308]),
        1 => prop::sample::select(vec![f64::INFINITY, f64::NEG_INFINITY, f64::NAN, -f64::NAN]),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn sums_averages_and_deviations_are_the_same_bits_in_any_order_and_split(
        (values, shuffled) in prop::collection::vec(special(), 0..24).prop_flat_map(|v| (Just(v.clone()), Just(v).prop_shuffle())),
        cuts in prop::collection::vec(0..24_usize, 0..4),
        finite in any::<bool>(),
    ) {
        let keep = |values: Vec<f64>| values.into_iter().filter(|x| !finite || x.is_finite()).collect::<Vec<_>>();
        let (values, shuffled) = (keep(values), keep(shuffled));
        let view = &kept(&catalog(), "doubles");
        let whole = of(view, &values);
        let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(shuffled.len())).chain([0, shuffled.len()]).collect();
        cuts.sort_unstable();
        let parts: Vec<DataFrame> = cuts.windows(2).map(|cut| of(view, &shuffled[cut[0]..cut[1]])).collect();
        let expected = bits(&rows(view, vec![whole.clone()]));
        prop_assert_eq!(&bits(&rows(view, parts.clone())), &expected, "{:?}", shuffled);
        let merged = merge(view.aggregation(), parts.iter().rev().cloned(), Keep::Bounded).expect("merged");
        prop_assert_eq!(&bits(&rows(view, vec![merged.clone()])), &expected);
        if !values.is_empty() {
            // The states themselves are the same, to the last bit.
            for name in ["a0", "a0r", "a0w", "a0n", "a2", "a2n"] {
                let (one, other) = (whole.column(name).expect("a state"), merged.column(name).expect("a state"));
                prop_assert!(one.equals_missing(other), "{}: {:?} {:?}", name, one, other);
            }
        }
        let (left, right) = parts.split_at(parts.len() / 2);
        let half = |parts: &[DataFrame]| merge(view.aggregation(), parts.to_vec(), Keep::Everything).expect("merged");
        prop_assert_eq!(&bits(&rows(view, vec![half(right), half(left)])), &expected, "associative");
    }

    #[test]
    fn sums_and_averages_of_doubles_are_those_of_fsum(values in prop::collection::vec(double(), 1..40)) {
        let view = &kept(&catalog(), "doubles");
        let rows = rows(view, vec![of(view, &values)]);
        let expected = fsum(&values);
        prop_assert_eq!(number(&rows, "sum").map(f64::to_bits), Some(expected.to_bits()), "{:?}", values);
        prop_assert_eq!(number(&rows, "mean"), Some(expected / values.len() as f64));
    }

    /// A state is stored as the number that it is, wherever its window lies.
    #[test]
    fn sums_in_a_window_are_written_as_wide_ones(whole in any::<i128>(), cut in 1..127_u32, squares in any::<[u64; 4]>(), limbs in 0..=4_usize, at in -2_300..1_900_i32) {
        let whole = whole >> cut;
        let (mut written, mut expected) = (Vec::new(), Vec::new());
        write_whole(&[whole as u64, (whole >> 64) as u64], (whole >> 127) as u64, at, &mut written);
        Wide::of(whole, at).write(&mut expected);
        prop_assert_eq!(&written, &expected, "{} at {}", whole, at);
        let mut wide = Wide::default();
        squares[..limbs].iter().zip(0..).for_each(|(&limb, i)| wide.add(limb.into(), at + 64 * i));
        written.clear();
        expected.clear();
        write_whole(&squares[..limbs], 0, at, &mut written);
        wide.write(&mut expected);
        prop_assert_eq!(&written, &expected, "{:?} at {}", squares, at);
    }

    /// Of whole numbers times a power of two the variance is a quotient of integers.
    #[test]
    fn variances_are_the_nearest_doubles(values in prop::collection::vec(-1_000_000_000..1_000_000_000_i64, 1..30), far in prop::sample::select(vec![0_i64, 1 << 50]), power in -300..300_i32) {
        let wholes: Vec<i64> = values.iter().map(|v| v + far).collect();
        let doubles: Vec<f64> = wholes.iter().map(|&v| v as f64 * 2_f64.powi(power)).collect();
        let view = &kept(&catalog(), "doubles");
        let rows = rows(view, vec![of(view, &doubles)]);
        let count = values.len() as i128;
        // What all values have in common is nothing to a variance.
        let sum: i128 = values.iter().map(|&v| i128::from(v)).sum();
        let numerator = count * values.iter().map(|&v| i128::from(v).pow(2)).sum::<i128>() - sum * sum;
        for (name, by) in [("var", count * count), ("vs", count * (count - 1))] {
            let found = number(&rows, name);
            if by == 0 {
                prop_assert_eq!(found, None);
                continue;
            }
            let found = found.expect("a variance") * 2_f64.powi(-power) * 2_f64.powi(-power);
            // The numerator is below 2^74, and 2^40 times as much an integer still.
            let scaled = found * 2_f64.powi(30);
            let distance = |x: f64| (numerator.unsigned_abs() << 30).abs_diff(by.unsigned_abs() * x as u128);
            let step = (scaled.next_up() - scaled).max(2.0);
            if numerator == 0 {
                prop_assert_eq!(found, 0.0);
            } else if scaled > 2_f64.powi(54) {
                prop_assert!(distance(scaled) <= distance(scaled + step) && distance(scaled) <= distance(scaled - step), "{}", found);
            } else {
                let expected = numerator as f64 / by as f64;
                prop_assert!((found - expected).abs() <= 4.0 * f64::EPSILON * expected, "{} {}", found, expected);
            }
        }
    }
}

#[test]
fn a_sum_of_doubles_is_exact_in_every_order() {
    for values in [
        vec![1e16, -1e16, 1.0],
        vec![1e16, 1.0, -1e16, 1e-300, 1.0, -1e-300, -1.0],
        vec![1e300, 1.0, -1e300],
        vec![f64::MAX, f64::MAX, -f64::MAX, -f64::MAX, 1.0],
        vec![5e-324, 1e308, -1e308, 1.0, -5e-324],
    ] {
        for order in orders(&values) {
            assert_eq!(sum(&order), 1.0, "{order:?}");
        }
    }
    for order in orders(&[1e308, 1e308, -1e308]) {
        assert_eq!(sum(&order), 1e308, "no sum on the way is too large");
    }
    assert_eq!(sum(&[5e-324, 5e-324]), 1e-323);
    assert_eq!(sum(&[0.1; 10]), 1.0);
    assert_eq!(sum(&[-0.0, -0.0]).to_bits(), 0, "there is one zero");
}

#[test]
fn a_sum_beyond_all_doubles_is_infinite_and_its_average_is_not() {
    let catalog = catalog();
    let view = &kept(&catalog, "doubles");
    let of = |values: &[f64]| rows(view, values.iter().map(|&value| of(view, &[value])).collect());
    let two = of(&[f64::MAX, f64::MAX]);
    assert_eq!((number(&two, "sum"), number(&two, "mean")), (Some(f64::INFINITY), Some(f64::MAX)));
    assert_eq!((number(&two, "var"), number(&two, "sd")), (Some(0.0), Some(0.0)));
    assert_eq!(number(&of(&[-1e308, -1e308]), "sum"), Some(f64::NEG_INFINITY));
    assert_eq!(number(&of(&[f64::INFINITY, 1.0, -1e300]), "sum"), Some(f64::INFINITY));
    assert_eq!(number(&of(&[f64::INFINITY, 1.0, -1e300]), "var").map(f64::is_nan), Some(true));
    for values in orders(&[f64::INFINITY, f64::NEG_INFINITY, 1.0]) {
        assert_eq!(number(&of(&values), "sum").map(f64::to_bits), Some(f64::NAN.to_bits()), "{values:?}");
    }
    let far = of(&[1e200, -1e200]);
    assert_eq!((number(&far, "var"), number(&far, "sd")), (Some(f64::INFINITY), Some(1e200)), "the root is a double");
}

/// Values with the variances of all and of a sample, computed with Python's fractions and rounded once.
const VARIANCES: &[(&[f64], f64, f64)] = &[
    (&[0.1, 0.2, 0.3], 0.006666666666666665, 0.009999999999999998),
    (&[1000000000.1, 1000000000.2, 1000000000.4], 0.015555549727546728, 0.023333324591320093),
    (&[12.34, 99.99, 0.01, 1000000.07], 187485985497.81964, 249981313997.09286),
    (&[1e-200, 3e-200], 0.0, 0.0),
    (&[1e+150, 2.5e+150, -1e+150], 2.0555555555555557e+300, 3.0833333333333333e+300),
    (&[1e+16, 1.0, 2.0], 2.2222222222222215e+31, 3.3333333333333325e+31),
    (&[1e+150, 1e-20, 3.7], 2.222222222222222e+299, 3.333333333333333e+299),
];

#[test]
fn variances_lose_no_digits() {
    let catalog = catalog();
    let view = &kept(&catalog, "doubles");
    let of = |values: &[f64]| rows(view, vec![of(view, values)]);
    for (values, var, vs) in VARIANCES {
        let found = of(values);
        assert_eq!((number(&found, "var"), number(&found, "vs")), (Some(*var), Some(*vs)), "{values:?}");
    }
}

#[test]
fn an_average_of_integers_is_exact_and_an_overflow_on_the_way_is_none() {
    let catalog = catalog();
    let view = &kept(&catalog, "wholes");
    let (max, min) = (i64::MAX, i64::MIN);
    let of = |values: &[i64]| {
        let at_once = partials(view, frame(&[], values, &[]), false).expect("partials");
        let each = values.iter().map(|&value| partials(view, frame(&[], &[value], &[]), false).expect("partials"));
        let each = each.collect::<Vec<_>>();
        let merged = merge(view.aggregation(), each.clone(), Keep::Bounded).expect("merged");
        assert_eq!(merged, at_once, "{values:?}");
        let rows = rows(view, each);
        (rows.column("sum").expect("sum").i64().expect("integers").get(0), number(&rows, "mean").expect("a mean"))
    };
    assert_eq!(of(&[max; 4]), (None, max as f64), "the mean of four times 2^63 - 1");
    assert_eq!(of(&[min; 3]), (None, min as f64));
    for values in [[max, 1, -1], [1, max, -1], [-1, 1, max], [max, -1, 1]] {
        assert_eq!(of(&values), (Some(max), (max as f64) / 3.0), "{values:?}");
    }
    assert_eq!(of(&[max, max, min, min, 2]).0, Some(0));
    assert_eq!(of(&[max, 1]).0, None, "it doesn't fit, and isn't wrapped");
    assert_eq!(of(&[9_007_199_254_740_993, 0]).1, 4_503_599_627_370_496.5);
    assert_eq!(of(&[max, max - 2_048, 7]).1, 6_148_914_691_236_516_523_f64);
    assert_eq!(of(&[-7, 0]), (Some(-7), -3.5));
}

#[test]
fn there_is_one_nan_above_all_numbers_and_one_zero() {
    let catalog = catalog();
    let view = &kept(&catalog, "doubles");
    let negative = f64::from_bits(f64::NAN.to_bits() | 1 << 63);
    let other = f64::from_bits(0x7ff8_0000_0000_1234);
    let infinities = [f64::INFINITY, negative, f64::NEG_INFINITY, other];
    for values in orders(&infinities) {
        let found = rows(view, values.iter().map(|&value| of(view, &[value])).collect());
        let bits = |name| number(&found, name).map(f64::to_bits);
        let (least, nan) = (Some(f64::NEG_INFINITY.to_bits()), Some(f64::NAN.to_bits()));
        assert_eq!((bits("least"), bits("most")), (least, nan), "{values:?}");
        assert_eq!((bits("first"), bits("last")), (least, nan), "by their places");
        let count = found.column("values").expect("values").i64().expect("integers").get(0);
        assert_eq!(count, Some(3), "both are one value");
    }
    for values in [[0.0, -0.0], [-0.0, 0.0]] {
        let found = rows(view, values.iter().map(|&value| of(view, &[value])).collect());
        for name in ["least", "most", "first", "last", "sum", "mean", "middle"] {
            assert_eq!(number(&found, name).map(f64::to_bits), Some(0), "{name}");
        }
        assert_eq!(found.column("values").expect("values").i64().expect("integers").get(0), Some(1));
    }
    let view = &kept(&catalog, "keyed");
    let groups = rows(view, vec![of(view, &[negative, -0.0, 1.0]), of(view, &[other, 0.0, f64::NAN])]);
    let keys: Vec<f64> = groups.column("k").expect("keys").f64().expect("doubles").iter().flatten().collect();
    assert_eq!(
        groups.column("n").expect("n").i64().expect("integers").iter().collect::<Vec<_>>(),
        [Some(2), Some(1), Some(3)]
    );
    assert!(keys[..2] == [0.0, 1.0] && keys[2].is_nan(), "{keys:?}");
}

#[test]
fn many_distinct_values_have_one_nan_and_one_zero_in_a_sketch_too() {
    let catalog = catalog();
    let view = &kept(&catalog, "doubles");
    let negative = f64::from_bits(f64::NAN.to_bits() | 1 << 63);
    let values: Vec<f64> = (1..2_000).map(f64::from).collect();
    let estimate = |more: &[f64]| {
        let all = of(view, &[&values[..], more].concat());
        let sketched = merge(view.aggregation(), [all], Keep::Bounded).expect("merged");
        rows(view, vec![sketched]).column("values").expect("values").i64().expect("integers").get(0)
    };
    assert_eq!(estimate(&[f64::NAN, 0.0]), estimate(&[f64::NAN, negative, 0.0, -0.0]));
}

#[test]
fn states_of_earlier_editions_are_of_another_definition() {
    use sha2::{Digest, Sha256};
    let catalog = catalog();
    let view = &kept(&catalog, "wholes");
    let query = view.sql.split_once(" AS ").map(|(_, query)| query.trim_end_matches(';').to_owned()).expect("a query");
    let of = |text: String| {
        let hash = Sha256::digest(text.as_bytes());
        hash.iter().fold(String::from("sha256:"), |text, byte| text + &format!("{byte:02x}"))
    };
    let canonical = format!("{}\nallowed_lateness = 0 us\n{query}", view.table().sql);
    assert_eq!(view.id.definition, of(format!("edition 2\n{canonical}")));
    assert_ne!(view.id.definition, of(canonical), "that of a sum that wrapped, and had no carries");
}

#[test]
fn the_order_of_doubles_is_total() {
    use super::Number;
    let negative = f64::from_bits(f64::NAN.to_bits() | 1 << 63);
    assert_eq!(Number::order(&negative, &f64::INFINITY), Ordering::Greater);
    assert_eq!(Number::order(&negative, &f64::NAN), Ordering::Equal);
    assert_eq!(Number::order(&-0.0, &0.0), Ordering::Equal);
}
