//! The community's T4 format (autotuning results, schema version 1.0.0), as Kernel Tuner writes it.
//!
//! A result needs `configuration`, `times`, `invalidity` and `correctness`; `timestamp`, `objectives` and `measurements` (name, value, unit)
//! may be there. A table's entry becomes one result: its tunables and its kernel are the configuration, the numbers of what was measured are
//! measurements. Texts are not: two schemas go by this version, and while Kernel Tuner's takes them as a measurement's value, that of the
//! format's authors takes numbers alone. Both leave other properties open: texts stand in `metadata`, as Kernel Tuner's unit of time does.

use ropeway::TunedTable;
use serde_json::{Map, Value, json};

/// The version of the schema.
const SCHEMA_VERSION: &str = "1.0.0";

/// Tables as one T4 document. Entries that nobody measured are not results and are left out.
pub fn document(tables: &[TunedTable]) -> Value {
    let results: Vec<Value> = tables.iter().flat_map(results).collect();
    json!({
        "schema_version": SCHEMA_VERSION,
        "metadata": {"timeunit": "milliseconds"},
        "results": results,
    })
}

fn results(table: &TunedTable) -> Vec<Value> {
    let measured = table.entries.iter().filter_map(|entry| {
        let measured = entry.measured.as_ref()?;
        let mut configuration = Map::new();
        configuration.insert("kernel".into(), json!(entry.kernel));
        for (name, value) in &entry.config {
            configuration.insert(name.clone(), json!(value));
        }
        let mut measurements = vec![
            measurement("time", json!(1e3 * measured.seconds), "ms"),
            measurement("time_deviation", json!(1e3 * measured.deviation), "ms"),
            measurement("time_default", json!(1e3 * measured.default_seconds), "ms"),
            measurement("error_over_bound", json!(measured.error_over_bound), ""),
            measurement("samples", json!(measured.samples), ""),
            measurement("kernel_version", json!(entry.version), ""),
        ];
        let mut metadata = json!({
            "op": entry.op,
            "variant": entry.variant,
            "kernel_default": measured.default_kernel,
            "device": table.device,
            "backend": table.backend,
            "architecture": table.architecture,
        });
        for (name, size) in &entry.sizes {
            measurements.push(measurement(&format!("size_{name}"), json!(size), ""));
        }
        let (invalidity, correctness) = match measured.error_over_bound <= 1.0 {
            true => ("correct", 1),
            false => ("correctness", 0),
        };
        let mut result = json!({
            "configuration": configuration,
            "times": {"runtimes": [1e3 * measured.seconds]},
            "invalidity": invalidity,
            "correctness": correctness,
            "objectives": ["time"],
        });
        if let Some(provenance) = &entry.provenance {
            result["timestamp"] = json!(provenance.date);
            for (name, text) in [
                ("driver", &provenance.driver),
                ("compiler", &provenance.compiler),
                ("source", &provenance.source),
                ("ropeway", &provenance.ropeway),
            ] {
                metadata[name] = json!(text);
            }
        }
        result["metadata"] = metadata;
        result["measurements"] = Value::Array(measurements);
        Some(result)
    });
    measured.collect()
}

fn measurement(name: &str, value: Value, unit: &str) -> Value {
    json!({"name": name, "value": value, "unit": unit})
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = r#"
        device = "chip"
        backend = "opencl"
        [[entry]]
        op = "gemm"
        variant = "f32_f32_nn"
        sizes = { m = 64, n = 512 }
        kernel = "gemm_packed"
        version = 3
        config = { TILE_M = 8, TILE_N = 16 }
        measured = { seconds = 0.001, deviation = 1e-6, samples = 9, default_kernel = "gemm_tiled", default_seconds = 0.002, default_deviation = 0.0, error_over_bound = 0.25 }
        provenance = { driver = "d", compiler = "c", source = "s", ropeway = "0.1.0", date = "2026-01-31", seed = 7 }
        [[entry]]
        op = "gemm"
        variant = "by_hand"
        sizes = { m = 64 }
        kernel = "gemm_packed"
        version = 3
        config = {}
    "#;

    /// The rules of both schemas, written out: types, required fields, the values of `invalidity`, and of a measurement's value what the
    /// stricter takes.
    fn assert_is_t4(document: &Value) {
        let version = document["schema_version"].as_str().expect("a string");
        assert!(
            version.split('.').count() == 3
                && version.split('.').all(|part| part.parse::<u32>().is_ok())
        );
        for result in document["results"].as_array().expect("an array") {
            for (field, is_right) in [
                ("configuration", Value::is_object as fn(&Value) -> bool),
                ("times", Value::is_object),
                ("invalidity", Value::is_string),
                ("correctness", Value::is_number),
                ("objectives", Value::is_array),
                ("measurements", Value::is_array),
            ] {
                assert!(is_right(&result[field]), "{field}: {result:#}");
            }
            let values = [
                "timeout",
                "compile",
                "runtime",
                "correctness",
                "constraints",
                "correct",
            ];
            assert!(values.contains(&result["invalidity"].as_str().unwrap_or_default()));
            assert!(result["times"]["runtimes"].is_array());
            assert!(result.get("timestamp").is_none_or(Value::is_string));
            for measurement in result["measurements"].as_array().expect("checked") {
                assert!(measurement["name"].is_string() && measurement["unit"].is_string());
                assert!(measurement["value"].is_number(), "{measurement}");
            }
        }
    }

    #[test]
    fn the_document_obeys_the_schema_and_holds_what_was_measured() {
        let table = TunedTable::parse(TABLE).unwrap();
        let document = document(&[table.clone(), table]);
        assert_is_t4(&document);
        let results = document["results"].as_array().unwrap();
        assert_eq!(results.len(), 2, "what was written by hand is no result");
        let first = &results[0];
        assert_eq!(
            first["configuration"],
            json!({"kernel": "gemm_packed", "TILE_M": 8, "TILE_N": 16})
        );
        assert_eq!(first["times"]["runtimes"], json!([1.0]));
        assert_eq!(first["timestamp"], "2026-01-31");
        let value = |name: &str| {
            let all = first["measurements"].as_array().unwrap();
            all.iter()
                .find(|m| m["name"] == name)
                .map(|m| m["value"].clone())
        };
        assert_eq!(value("time_default"), Some(json!(2.0)));
        let texts = [&first["metadata"]["op"], &first["metadata"]["driver"]];
        assert_eq!(texts, ["gemm", "d"]);
        assert_eq!(value("size_n"), Some(json!(512)));
    }
}
