//! Text in columns, as kubectl lays it out, and the small templates of `-o jsonpath`. Pure.

use anyhow::bail;
use api::jsonpath::Path;
use api::object::Value;

/// Blanks between columns.
const GAP: usize = 3;
/// How narrow a column may be, with its gap.
const NARROWEST: usize = 6;

/// Rows under headings. Widths are kept, so that rows printed later stand under those before.
#[derive(Debug, Default)]
pub(crate) struct Table {
    widths: Vec<usize>,
}

impl Table {
    /// The rows as lines.
    pub(crate) fn lines(&mut self, rows: &[Vec<String>]) -> String {
        for row in rows {
            for (i, cell) in row.iter().enumerate() {
                if self.widths.len() <= i {
                    self.widths.push(NARROWEST);
                }
                self.widths[i] = self.widths[i].max(one_line(cell).chars().count() + GAP);
            }
        }
        let mut out = String::new();
        for row in rows {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&self.widths) {
                let cell = one_line(cell);
                line.push_str(&cell);
                line.extend(std::iter::repeat_n(' ', width - cell.chars().count()));
            }
            out.push_str(line.trim_end());
            out.push('\n');
        }
        out
    }
}

/// A cell up to its first line break.
fn one_line(cell: &str) -> String {
    match cell.find(['\n', '\r', '\u{c}']) {
        Some(at) => format!("{}...", &cell[..at]),
        None => cell.to_owned(),
    }
}

/// Renders a template such as `{.metadata.name}{"\n"}` or `{range .items[*]}{.metadata.name} {end}`.
pub(crate) fn template(text: &str, value: &Value) -> anyhow::Result<String> {
    let mut out = String::new();
    let rest = render(text, value, &mut out)?;
    if !rest.is_empty() {
        bail!("jsonpath: {{end}} without {{range}} in {text:?}");
    }
    Ok(out)
}

/// Renders up to `{end}` or the end of the text; returns what follows.
fn render<'a>(mut text: &'a str, value: &Value, out: &mut String) -> anyhow::Result<&'a str> {
    while let Some(open) = text.find('{') {
        out.push_str(&text[..open]);
        let Some(close) = closing(&text[open..]) else {
            bail!("jsonpath: unclosed action in {text:?}");
        };
        let action = text[open + 1..open + close].trim();
        text = &text[open + close + 1..];
        if action == "end" {
            return Ok(if text.is_empty() { " " } else { text });
        }
        if let Some(path) = action.strip_prefix("range ") {
            text = range(path.trim(), text, value, out)?;
        } else if let Some(quoted) = action.strip_prefix(['"', '\'']) {
            let inner = &quoted[..quoted.len().saturating_sub(1)];
            out.push_str(&inner.replace("\\n", "\n").replace("\\t", "\t"));
        } else {
            let found: Vec<String> = find(action, value)?.into_iter().map(plain).collect();
            out.push_str(&found.join(" "));
        }
    }
    out.push_str(text);
    Ok("")
}

fn range<'a>(
    path: &str,
    body: &'a str,
    value: &Value,
    out: &mut String,
) -> anyhow::Result<&'a str> {
    // What follows is found by rendering once, even when there is nothing to render.
    let after = render(body, &Value::Null, &mut String::new())?;
    if after.is_empty() {
        bail!("jsonpath: {{range}} without {{end}}");
    }
    for item in find(path, value)? {
        render(body, item, out)?;
    }
    Ok(if after == " " { "" } else { after })
}

fn find<'a>(path: &str, value: &'a Value) -> anyhow::Result<Vec<&'a Value>> {
    let path = path.strip_prefix('@').unwrap_or(path);
    if path.is_empty() {
        return Ok(vec![value]);
    }
    let parsed = Path::parse(path).map_err(|error| anyhow::anyhow!("{error}"))?;
    Ok(parsed.find(value))
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// Where the brace that `text` begins with closes, quotes respected.
fn closing(text: &str) -> Option<usize> {
    let mut quote = None;
    for (i, c) in text.char_indices() {
        match (quote, c) {
            (Some(q), c) if c == q => quote = None,
            (Some(_), _) => {}
            (None, '"' | '\'') => quote = Some(c),
            (None, '}') => return Some(i),
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_stand_under_each_other_and_stay_there() {
        let row = |cells: &[&str]| cells.iter().map(ToString::to_string).collect::<Vec<_>>();
        let mut table = Table::default();
        let text = table.lines(&[row(&["NAME", "A"]), row(&["web-0", "two\nlines"])]);
        assert_eq!(text, "NAME    A\nweb-0   two...\n");
        assert_eq!(table.lines(&[row(&["a", "b"])]), "a       b\n");
    }

    #[test]
    fn templates_say_what_kubectl_says() {
        let text = r#"{"items":[{"metadata":{"name":"a"},"n":1},{"metadata":{"name":"b"},"n":2}]}"#;
        let value = api::codec::json::parse(text.as_bytes()).unwrap();
        for (given, want) in [
            ("{.items[0].metadata.name}", "a"),
            ("{.items[*].n}", "1 2"),
            ("n={.items[1].n};", "n=2;"),
            (r#"{range .items[*]}{.metadata.name}{"\n"}{end}"#, "a\nb\n"),
            ("{range .items[*]}{@.n},{end}!", "1,2,!"),
            ("{range .nothing[*]}x{end}", ""),
            ("{.missing}", ""),
        ] {
            assert_eq!(template(given, &value).unwrap(), want, "{given}");
        }
        for bad in ["{.a", "{range .items[*]}x", "x{end}y"] {
            assert!(template(bad, &value).is_err(), "{bad}");
        }
    }
}
