//! What the plots have in common.

use std::fmt::Write;

/// Begins a plot of that size.
pub(crate) fn begin(width: f64, height: f64, title: &str) -> String {
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"10\" y=\"20\" font-size=\"15\">{title}</text>\n"
    )
}

/// Which colour is which column.
pub(crate) fn legend<'a>(svg: &mut String, columns: impl IntoIterator<Item = [&'a str; 2]>) {
    for (index, [name, colour]) in columns.into_iter().enumerate() {
        let at = 10.0 + 120.0 * index as f64;
        let _ = writeln!(
            svg,
            "<circle cx=\"{}\" cy=\"38\" r=\"5\" fill=\"{colour}\"/><text x=\"{}\" y=\"42\">{name}</text>",
            at + 5.0,
            at + 15.0,
        );
    }
}

/// A line by way of these points, each marked.
pub(crate) fn line(svg: &mut String, points: &[(f64, f64)], colour: &str) {
    let text: Vec<String> = points
        .iter()
        .map(|(x, y)| format!("{x:.1},{y:.1}"))
        .collect();
    let _ = writeln!(
        svg,
        "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>",
        text.join(" ")
    );
    for (x, y) in points {
        let _ = writeln!(
            svg,
            "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\" fill=\"{colour}\"/>"
        );
    }
}
