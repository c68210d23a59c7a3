"use strict";
const figures = JSON.parse(document.getElementById("figures").textContent);
const config = { responsive: true, displaylogo: false, displayModeBar: "hover",
  modeBarButtonsToRemove: ["lasso2d", "select2d", "autoScale2d"] };
document.querySelectorAll(".plot").forEach(place => {
  const figure = figures[Number(place.dataset.figure)];
  Plotly.newPlot(place, figure.data, figure.layout, config);
});
