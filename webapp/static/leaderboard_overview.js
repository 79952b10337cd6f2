/** The overview of all categories: what there is to press in its header. Everything else works without a script. */

import { startNav } from "./nav.js";

startNav();
