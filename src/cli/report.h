/* The page of `vkmoe experts report` as the build puts it into the program (cmake/report.cmake), NUL behind
 * each part. */
#ifndef CLI_REPORT_H
#define CLI_REPORT_H

extern const char cli_report_html[], cli_report_css[], cli_report_js[];

#endif
