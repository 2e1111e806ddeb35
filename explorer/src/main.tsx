/** Start of the page. */

import "./style.css";
import "./panels.css";
import { render } from "preact";
import { Detail } from "./detail";

const page = document.getElementById("page");
if (page) render(<Detail />, page);
