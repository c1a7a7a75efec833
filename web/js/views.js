// The page views.html: the plain page of any project.

import { showProject } from "./project.js";

showProject();
